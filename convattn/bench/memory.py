"""How much memory a computation needs beyond what it was given and what it returns."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def peak_memory(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Return the most bytes that were allocated at once, less those of the result.

    What existed before counts for nothing, even if it is freed: parameters, inputs. What is left at
    the end, because the function returned it or stored it, is not counted either. On a CPU every
    allocation of PyTorch's allocator is followed, those within an operator too; on a GPU those of
    the caching allocator.

    Args:
        function: called once; call it before, where a first call allocates what later ones keep.
        device: where it computes.
    """
    device = torch.device(device)
    return _peak_cuda(function, device) if device.type == "cuda" else _peak_cpu(function)


def _peak_cuda(function: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = function()
    torch.cuda.synchronize(device)
    kept = torch.cuda.memory_allocated(device)
    del result
    return torch.cuda.max_memory_allocated(device) - kept


def _peak_cpu(function: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes to the terminal
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    recorded = profiler.profiler
    assert recorded is not None
    assert recorded.kineto_results is not None
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    del result
    return peak - allocated
