"""Describe what a result was measured on: machine, versions, commit."""

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
# Results that differ in one of these are of different machines.
_IDENTITY = ("device", "cpu", "cores", "gpu")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the facts about the machine, for JSON; with its GPU if ``device`` is one."""
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
    """Return the versions of Python, of this package and of its dependencies.

    ``c_kernels`` is "compiled" if this package's C kernels are available, else None.
    """
    own = {"python": platform.python_version(), "convattn": __version__}
    kernels = {"c_kernels": "compiled" if available() else None}
    return {**own, **{name: machine.package_version(name) for name in _PACKAGES}, **kernels}


def describe_environment() -> dict[str, str]:
    """Return the environment variables that are set and change the speed of PyTorch.

    The settings of a result have the number of threads, so its variables are left out here.
    """
    found = machine.environment_variables()
    return {name: value for name, value in found.items() if not name.endswith("_NUM_THREADS")}


@cache
def describe_commit() -> str | None:
    """Return the commit of this checkout, with ``+`` if files differ; None outside a checkout."""
    commit = machine.git_commit()
    return commit and commit[:12] + ("+" if machine.differs_from_commit() else "")


def slug(described: dict[str, Any]) -> str:
    """Return a short name of a machine for file names, such as ``cpu-amd-epyc-zen-5``."""
    name = described["gpu"] or described["cpu"]
    name = re.sub(r"\((r|tm|c)\)|\b(cpu|processor|\d+-core|nvidia)\b|@.*", " ", name.lower())
    words = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{'gpu' if described['gpu'] else 'cpu'}-{words or 'unknown'}"


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two descriptions are of the same machine."""
    return all(one.get(key) == other.get(key) for key in _IDENTITY)


def _gpu_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30)
