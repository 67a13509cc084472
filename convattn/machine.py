"""What this package runs on: processor, memory, a container's limits, versions, the commit.

Nothing here raises: what cannot be found out is None or empty.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# A cloud's processors call themselves "AMD EPYC": the family says which.
_FAMILIES = {("AuthenticAMD", "23"): "Zen 1 or 2", ("AuthenticAMD", "25"): "Zen 3 or 4"}
_FAMILIES |= {("AuthenticAMD", "26"): "Zen 5"}
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
_ARM_FLAGS = ("asimd", "bf16", "sve", "sve2", "sme")
_CGROUPS = Path("/sys/fs/cgroup")
# Variables that change how fast PyTorch is: its allocator, threads, kernels.
_VARIABLES = re.compile(
    "(CONVATTN_|MALLOC_|GLIBC_TUNABLES$|LD_PRELOAD$|OMP_|GOMP_|KMP_|MKL_|ONEDNN_|DNNL_|ATEN_|TORCH_ALLOW_|"
    "PYTORCH_|CUBLAS_|NVIDIA_TF32)"
)


def package_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the checkout that this package lies in; None without one or git."""
    home = Path(__file__).parents[1]
    return _git(home, "rev-parse", "HEAD") if (home / ".git").exists() else None


def differs_from_commit() -> bool:
    """Return whether tracked files of this package differ from `git_commit`."""
    home = Path(__file__).parents[1]
    return bool(_git(home, "status", "--porcelain", "--untracked-files=no", "--", "convattn"))


def processor_name() -> str:
    """Return the name of the processor."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    family = _FAMILIES.get((info.get("vendor_id", ""), info.get("cpu family", "")))
    return f"{name} ({family})" if family else name


def processor_flags() -> list[str]:
    """Return those instruction sets of the processor that PyTorch or the kernels may use."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    return [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in flags]


def usable_cores() -> int | None:
    """Return on how many cores the system lets this process run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def core_quota() -> float | None:
    """Return how many cores' time the container may use, if it is limited."""
    quotas = _cgroup_values("cpu", "cpu.cfs_quota_us")
    periods = _cgroup_values("cpu", "cpu.cfs_period_us")
    texts = [*_cgroup_values("", "cpu.max"), *map(" ".join, zip(quotas, periods, strict=False))]
    found = filter(None, (re.fullmatch(r"(\d+) ([1-9]\d*)", text) for text in texts))
    limits = [int(quota) / int(period) for quota, period in (match.groups() for match in found)]
    return min(limits, default=None)


def memory() -> int | None:
    """Return the bytes of memory that the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no POSIX
        return None


def memory_limit() -> int | None:
    """Return how many bytes of memory the container may use, if that is less than there are."""
    texts = _cgroup_values("", "memory.max"), _cgroup_values("memory", "memory.limit_in_bytes")
    limits = [int(text) for group in texts for text in group if text.isdecimal()]
    least, there = min(limits, default=None), memory()
    return least if least is not None and (there is None or least < there) else None


def shared_memory() -> int | None:
    """Return the bytes of ``/dev/shm``, by which loading processes hand over images."""
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def environment_variables(more: str = "") -> dict[str, str]:
    """Return the variables that change how fast PyTorch is, where they are set.

    Of libraries that are loaded first only the names, as their paths may be private.

    Args:
        more: a regular expression; variables whose names it matches from the start are shown too.
    """
    known = re.compile(f"{_VARIABLES.pattern}|({more})" if more else _VARIABLES)
    found = {name: os.environ[name] for name in sorted(os.environ) if known.match(name)}
    if "LD_PRELOAD" in found:
        found["LD_PRELOAD"] = " ".join(Path(w).name for w in re.split("[ :]+", found["LD_PRELOAD"]))
    return found


def _cpuinfo() -> dict[str, str]:
    """Return Linux's description of the first core; nothing elsewhere."""
    first = _read(Path("/proc/cpuinfo")).split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cgroup_values(controller: str, name: str) -> Iterator[str]:
    """Yield what a file says in each control group of this process, up to the root.

    Args:
        controller: of version 1, or "" for version 2, which has one tree for all.
        name: of the file.
    """
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            root = _CGROUPS / controller
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield _read(folder / name).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _git(home: Path, *words: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(home), *words], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
