"""What a result was measured on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from convattn.ops.kernels.native.library import available

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
_ARM_FLAGS = ("asimd", "bf16", "sve", "sve2", "sme")
# A cloud's processors call themselves "AMD EPYC": the family says which.
_FAMILIES = {("AuthenticAMD", "23"): "Zen 1 or 2", ("AuthenticAMD", "25"): "Zen 3 or 4"}
_FAMILIES |= {("AuthenticAMD", "26"): "Zen 5"}
_PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy")
# Variables that change how fast PyTorch is: its allocator, threads, kernels.
_VARIABLES = re.compile(
    "(CONVATTN_|MALLOC_|GLIBC_TUNABLES$|LD_PRELOAD$|OMP_|GOMP_|KMP_|MKL_|ONEDNN_|DNNL_|ATEN_|TORCH_ALLOW_|"
    "PYTORCH_|CUBLAS_|NVIDIA_TF32)"
)
# What makes two results ones of different machines.
_IDENTITY = ("device", "cpu", "cores", "gpu")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the machine for JSON; ``device`` says whether its GPU is what is measured."""
    device = torch.device(device)
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "device": device.type,
        "cpu": _cpu_name(info),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "flags": [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in flags],
        "memory_gib": _memory(),
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
    import convattn

    own = {"python": platform.python_version(), "convattn": convattn.__version__}
    kernels = {"c_kernels": "compiled" if available() else None}
    return {**own, **{name: _version(name) for name in _PACKAGES}, **kernels}


def describe_environment() -> dict[str, str]:
    """Return the variables that change how fast PyTorch is, where they are set.

    Of libraries that are loaded first only the names: paths are nobody's business.
    """
    found = {name: os.environ[name] for name in sorted(os.environ) if _VARIABLES.match(name)}
    if "LD_PRELOAD" in found:
        found["LD_PRELOAD"] = " ".join(Path(w).name for w in re.split("[ :]+", found["LD_PRELOAD"]))
    # The number of threads stands in the settings.
    return {name: value for name, value in found.items() if not name.endswith("_NUM_THREADS")}


@cache
def describe_commit() -> str | None:
    """Return the commit of this checkout, with a ``+`` if files differ; None for a package."""
    home = Path(__file__).parents[2]
    if not (home / ".git").exists():
        return None
    commit = _git(home, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    changed = _git(home, "status", "--porcelain", "--untracked-files=no", "--", "convattn")
    return commit + ("+" if changed else "")


def slug(machine: dict[str, Any]) -> str:
    """Return a short name of a machine for file names: ``cpu-amd-epyc-zen-5``, ``gpu-...``."""
    name = machine["gpu"] or machine["cpu"]
    name = re.sub(r"\((r|tm|c)\)|\b(cpu|processor|\d+-core|nvidia)\b|@.*", " ", name.lower())
    words = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{'gpu' if machine['gpu'] else 'cpu'}-{words or 'unknown'}"


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two results may stand in one file."""
    return all(one.get(key) == other.get(key) for key in _IDENTITY)


def _cpuinfo() -> dict[str, str]:
    """Return Linux's description of the first core; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_name(info: dict[str, str]) -> str:
    name = info.get("model name") or platform.processor() or platform.machine()
    family = _FAMILIES.get((info.get("vendor_id", ""), info.get("cpu family", "")))
    return f"{name} ({family})" if family else name


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):  # no POSIX
        return None


def _gpu_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(home: Path, *words: str) -> str:
    try:
        run = subprocess.run(
            ["git", "-C", str(home), *words], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()
