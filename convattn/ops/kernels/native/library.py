"""Compile the C of this folder for this machine, once, and load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
_SOURCES = ("vectors.h", "sliding.c")
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w")
_COMPILERS = ("gcc", "cc", "clang")
_SWITCH = "CONVATTN_NATIVE"
_lock = threading.Lock()


class NotAvailableError(RuntimeError):
    """The kernels cannot be had on this machine; the message says why."""


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the kernels can be had here; the first call compiles them.

    A compiler that fails is worth a warning, none at all is not.
    """
    with _lock:
        return _outcome()[0] is not None


def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        NotAvailableError: there is no compiler, or it fails, or ``CONVATTN_NATIVE=0``.
    """
    with _lock:
        loaded, reason = _outcome()
    if loaded is None:
        raise NotAvailableError(f"backend 'native': {reason}; backend 'auto' does without")
    return loaded


@cache
def _outcome() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason."""
    if os.environ.get(_SWITCH, "1") == "0":
        return None, f"{_SWITCH}=0 is set"
    if sys.platform != "linux":
        return None, f"the kernels are for Linux, this is {sys.platform}"
    compiler = _compiler()
    if compiler is None:
        return None, f"no C compiler ({', '.join(_COMPILERS)}, or $CC) is on the path"
    try:
        return ctypes.CDLL(str(_built(compiler))), ""
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{compiler} could not compile the kernels: {_message(error)}"
        warnings.warn(
            f"{reason}. PyTorch's operators compute the same, slower; {_SWITCH}=0 silences this",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, reason


def _compiler() -> str | None:
    named = os.environ.get("CC", "").split()
    names = (*named[:1], *_COMPILERS)
    return next((found for name in names if (found := shutil.which(name))), None)


def _message(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return str(said).strip().split("\n")[0]


def _built(compiler: str) -> Path:
    """Return the compiled library, of the cache where it is there."""
    try:
        return _build_in(_cache(), compiler)
    except PermissionError:  # a home that nobody may write to
        return _build_in(Path(tempfile.mkdtemp(prefix="convattn-")), compiler)


def _build_in(folder: Path, compiler: str) -> Path:
    target = folder / f"kernels-{_key(compiler)}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Processes that start together each build their own, and the last one stays.
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, str(_FOLDER / _SOURCES[-1]), "-o", unfinished, "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        os.replace(unfinished, target)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return target


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "convattn"


def _key(compiler: str) -> str:
    """Return what tells one build from another: source, compiler, processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=30)
    parts = [(_FOLDER / name).read_bytes() for name in _SOURCES]
    parts += [version.stdout, " ".join(_FLAGS).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> str:
    """Return what the processor can do: a home may be shared by machines that differ."""
    names = ("model name", "flags", "Features", "CPU part")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in names)
