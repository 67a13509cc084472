"""What a result was measured on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from typing import Any

import torch

from convattn import machine
from convattn.ops.kernels.native.library import available
from convattn.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy")
# What makes two results ones of different machines.
_IDENTITY = ("device", "cpu", "cores", "gpu")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the machine for JSON; ``device`` says whether its GPU is what is measured."""
    device = torch.device(device)
    memory = machine.memory()
    return {
        "device": device.type,
        "cpu": machine.processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": machine.usable_cores(),
        "flags": machine.processor_flags(),
        "memory_gib": None if memory is None else round(memory / 2**30),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "gpu_memory_gib": _gpu_memory(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "os": f"{platform.system()} {platform.release()}",
    }


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python, of this package and of what it computes with.

    ``c_kernels`` is "compiled" where this package's kernels for the CPU could be had, else None.
    """
    own = {"python": platform.python_version(), "convattn": __version__}
    kernels = {"c_kernels": "compiled" if available() else None}
    return {**own, **{name: machine.package_version(name) for name in _PACKAGES}, **kernels}


def describe_environment() -> dict[str, str]:
    """Return the variables that change how fast PyTorch is, where they are set.

    Without the number of threads, which stands in the settings.
    """
    found = machine.environment_variables()
    return {name: value for name, value in found.items() if not name.endswith("_NUM_THREADS")}


@cache
def describe_commit() -> str | None:
    """Return the commit of this checkout, with a ``+`` if files differ; None for a package."""
    commit = machine.git_commit()
    return commit and commit[:12] + ("+" if machine.differs_from_commit() else "")


def slug(described: dict[str, Any]) -> str:
    """Return a short name of a machine for file names: ``cpu-amd-epyc-zen-5``, ``gpu-...``."""
    name = described["gpu"] or described["cpu"]
    name = re.sub(r"\((r|tm|c)\)|\b(cpu|processor|\d+-core|nvidia)\b|@.*", " ", name.lower())
    words = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{'gpu' if described['gpu'] else 'cpu'}-{words or 'unknown'}"


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two results may stand in one file."""
    return all(one.get(key) == other.get(key) for key in _IDENTITY)


def _gpu_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30)
