"""Facts on the software and the machine of a run."""

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
    """Return the facts that are needed to repeat a run: versions, processor, kernels, commit.

    Returns:
        The facts by name; a fact is None where it cannot be determined. No error is raised, and
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
    return {name: _or_none(fact) for name, fact in facts.items()}


def _or_none(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception:  # a fact that only describes a run never ends a training
        return None


def cpu_kernels() -> str | None:
    """Return a description of the CPU kernels, None if it cannot be determined."""
    from convattn.ops.kernels.native.library import describe

    return _or_none(describe)


def _gpus() -> list[str]:
    """Return the names of the GPUs.

    PyTorch initialises CUDA to return them, and a process that is forked later could not use CUDA
    any more: where CUDA is not initialised, ``nvidia-smi`` returns the names.
    """
    count = torch.cuda.device_count()
    if not count or torch.cuda.is_initialized() or torch.version.hip:
        return [torch.cuda.get_device_name(index) for index in range(count)]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    command += ["-i", chosen] if chosen else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.split("\n")[:-1]
