"""Measure the peak memory of a computation beyond its inputs and outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def peak_memory(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Return the largest number of bytes allocated at once, minus the bytes of the result.

    Memory that was allocated before the call, such as parameters and inputs, is not counted, nor is
    memory that remains after the call because the function returned or stored it. On a CPU every
    allocation of PyTorch's allocator is recorded, also within an operator; on a GPU the caching
    allocator's statistics are read.

    Args:
        function: called once; if its first call allocates what later calls reuse, call it before.
        device: the device that the function computes on.
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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no output of the profiler
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
