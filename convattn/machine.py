"""The machine this package runs on: processor, memory, limits of a container, versions, commit.

No function here raises an error: a fact that cannot be found is None, or an empty text, list or
dictionary.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

# Cloud providers name their processors "AMD EPYC": the family tells them apart.
_FAMILIES = {("AuthenticAMD", "23"): "Zen 1 or 2", ("AuthenticAMD", "25"): "Zen 3 or 4"}
_FAMILIES |= {("AuthenticAMD", "26"): "Zen 5"}
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
_ARM_FLAGS = ("asimd", "bf16", "sve", "sve2", "sme")
_CGROUPS = Path("/sys/fs/cgroup")
# Environment variables that change the speed of PyTorch: its allocator, threads and kernels.
_VARIABLES = re.compile(
    "(CONVATTN_|MALLOC_|GLIBC_TUNABLES$|LD_PRELOAD$|OMP_|GOMP_|KMP_|MKL_|ONEDNN_|DNNL_|ATEN_|TORCH_ALLOW_|"
    "PYTORCH_|CUBLAS_|NVIDIA_TF32)"
)
# Git sets these variables for its hooks; they would name another checkout than this package's.
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")

P = ParamSpec("P")
T = TypeVar("T")


def _never_raises(default: Callable[[], Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function return ``default()`` instead of raising an error.

    A description of the machine must not end a training, whatever is missing or forbidden there.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except Exception:
                return default()

        return call

    return decorate


def _none() -> None:
    return None


@_never_raises(_none)
def package_version(package: str) -> str | None:
    """Return the version of an installed package."""
    return version(package)


@_never_raises(_none)
def git_commit() -> str | None:
    """Return the commit of the git checkout that holds this package; None without one."""
    home = Path(__file__).parents[1]
    return _git(home, "rev-parse", "HEAD") if (home / ".git").exists() else None


@_never_raises(bool)
def differs_from_commit() -> bool:
    """Return whether tracked files of this package differ from `git_commit`."""
    home = Path(__file__).parents[1]
    return bool(_git(home, "status", "--porcelain", "--untracked-files=no", "--", "convattn"))


@_never_raises(str)
def processor_name() -> str:
    """Return the name of the processor."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    family = _FAMILIES.get((info.get("vendor_id", ""), info.get("cpu family", "")))
    return f"{name} ({family})" if family else name


@_never_raises(list)
def processor_flags() -> list[str]:
    """Return those instruction sets of the processor that PyTorch or the kernels may use."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    return [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in flags]


@_never_raises(_none)
def usable_cores() -> int | None:
    """Return the number of cores that the system lets this process run on."""
    return len(os.sched_getaffinity(0))  # Linux only


@_never_raises(_none)
def core_quota() -> float | None:
    """Return the number of cores whose time a container may use; None without a limit."""
    quotas = _cgroup_values("cpu", "cpu.cfs_quota_us")
    periods = _cgroup_values("cpu", "cpu.cfs_period_us")
    texts = [*_cgroup_values("", "cpu.max"), *map(" ".join, zip(quotas, periods, strict=False))]
    found = filter(None, (re.fullmatch(r"(\d+) ([1-9]\d*)", text) for text in texts))
    limits = [int(quota) / int(period) for quota, period in (match.groups() for match in found)]
    return min(limits, default=None)


@_never_raises(_none)
def memory() -> int | None:
    """Return the bytes of memory of the machine."""
    size, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")  # POSIX only
    return size * pages if min(size, pages) > 0 else None


@_never_raises(_none)
def memory_limit() -> int | None:
    """Return the bytes of memory that a container may use; None if that is all of the machine's."""
    texts = _cgroup_values("", "memory.max"), _cgroup_values("memory", "memory.limit_in_bytes")
    limits = [int(text) for group in texts for text in group if text.isdecimal()]
    least, total = min(limits, default=None), memory()
    return least if least is not None and (total is None or least < total) else None


@_never_raises(_none)
def shared_memory() -> int | None:
    """Return the bytes of ``/dev/shm``, through which loading processes send images."""
    return shutil.disk_usage("/dev/shm").total


@_never_raises(dict)
def environment_variables(more: str = "") -> dict[str, str]:
    """Return the environment variables that change the speed of PyTorch, those that are set.

    ``LD_PRELOAD`` lists the names of its libraries only, since their folders may be private.

    Args:
        more: a regular expression; variables whose names start with a match are returned too.
    """
    known = re.compile(f"{_VARIABLES.pattern}|({more})" if more else _VARIABLES)
    found = {name: os.environ[name] for name in sorted(os.environ) if known.match(name)}
    if "LD_PRELOAD" in found:
        found["LD_PRELOAD"] = " ".join(Path(w).name for w in re.split("[ :]+", found["LD_PRELOAD"]))
    return found


def _cpuinfo() -> dict[str, str]:
    """Return Linux's description of the first core; empty on other systems."""
    first = _read(Path("/proc/cpuinfo")).split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cgroup_values(controller: str, name: str) -> Iterator[str]:
    """Yield the content of a file in each control group of this process, up to the root.

    Args:
        controller: a controller of version 1, or "" for version 2, which has one tree.
        name: the name of the file.
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
    """Return the output of a git command in ``home``; None if git is missing or fails."""
    variables = {name: text for name, text in os.environ.items() if name not in _GIT_PLACES}
    try:
        run = subprocess.run(
            ["git", "-C", str(home), *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=10,
            env=variables,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
