"""What a run was computed with and on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from convattn.machine import git_commit, package_version, processor_name
from convattn.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Return versions, processor, kernels and commit, which a reader needs to repeat a run.

    Returns:
        The facts; each one that cannot be found out is None. Nothing here raises an error, and
        CUDA is not initialised.
    """
    facts: dict[str, Callable[[], Any]] = {
        "convattn": lambda: __version__,
        "git_commit": git_commit,
        "python": platform.python_version,
        **{name: partial(package_version, name) for name in _PACKAGES},
        "platform": platform.platform,
        "processor": processor_name,
        "cpu_cores": os.cpu_count,
        "threads": torch.get_num_threads,
        "cpu_kernels": cpu_kernels,
        "gpus": _gpus,
    }
    return {name: _ask(fact) for name, fact in facts.items()}


def _ask(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception:  # a description never ends a training
        return None


def cpu_kernels() -> str | None:
    """Return which kernels operators use on the CPU, None if that cannot be found out."""
    from convattn.ops.kernels.native.library import describe

    return _ask(describe)


def _gpus() -> list[str]:
    """Return the names of the GPUs.

    PyTorch gives them only after it has initialised CUDA, which a process that is forked later
    could not use any more: until then NVIDIA's program is asked.
    """
    count = torch.cuda.device_count()
    if not count or torch.cuda.is_initialized() or torch.version.hip:
        return [torch.cuda.get_device_name(index) for index in range(count)]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    command += ["-i", chosen] if chosen else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.split("\n")[:-1]
