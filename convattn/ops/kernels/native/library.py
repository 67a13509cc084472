"""Compile the C of this folder for this machine, once, and load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

_FOLDER = Path(__file__).parent
_SOURCES = ("vectors.h", "products.h", "sliding.c", "rows.c", "heads.c")
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-w",  # warnings are for the tests, which have none
)
_COMPILERS = ("gcc", "cc", "clang")
_SWITCH = "CONVATTN_NATIVE"
_lock = threading.Lock()
_warned = False


def _renew_lock() -> None:
    """In a forked process: nobody there gives back what another thread held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class NotAvailableError(RuntimeError):
    """The kernels cannot be had on this machine; the message says why."""


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the kernels can be had here; the first call compiles them.

    A compiler that fails is worth a warning, none at all is not.
    """
    return _found().library is not None


@torch.compiler.assume_constant_result
def why_not_available() -> str | None:
    """Return why the kernels cannot be had here, or None; the first call compiles them."""
    found = _found()
    return None if found.library is not None else f"{found.reason} (`convattn doctor` shows more)"


def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        NotAvailableError: there is no compiler, or it fails, or ``CONVATTN_NATIVE=0``.
    """
    found = _found()
    if found.library is None:
        raise NotAvailableError(
            f"backend 'native': {found.reason}; backend 'auto' does without; `convattn doctor` "
            "shows more"
        )
    return found.library


class Status(NamedTuple):
    """What is known of the kernels on this machine."""

    reason: str  # why there are none; "" where they are compiled
    compiler: str  # the command that calls it; "" where none is found
    version: str  # what it says of itself
    cache: Path | None  # where builds are kept, if anywhere
    builds: tuple[Path, ...]  # of this machine and of others that share the cache


def status() -> Status:
    """Return what is known of the kernels, which are compiled now if they have not been.

    A compiler that fails is told in the answer, without a warning.
    """
    with _lock:
        reason = _outcome().reason
    compiler = _compiler() or []
    try:
        cache = _cache()
        builds = tuple(sorted(cache.glob("kernels-*.so")))
    except OSError:
        cache, builds = None, ()
    version = _version(compiler) if compiler else ""
    return Status(reason, shlex.join(compiler), version, cache, builds)


def _version(compiler: list[str]) -> str:
    """Return the first line of what a compiler says of itself; "" where it says nothing."""
    try:
        asked = [*compiler, "--version"]
        said = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.partition("\n")[0].strip()


class _Outcome(NamedTuple):
    library: ctypes.CDLL | None
    reason: str = ""  # why there is none
    failed: bool = False  # though there is a compiler


def _found() -> _Outcome:
    """Return what was found, and say once if a compiler failed."""
    global _warned
    with _lock:
        found = _outcome()
        warn, _warned = found.failed and not _warned, _warned or found.failed
    if warn:  # after it is known: a filter may make an error of it
        warnings.warn(
            f"{found.reason}. PyTorch's operators compute the same, slower; {_SWITCH}=0 silences "
            "this",
            RuntimeWarning,
            stacklevel=3,
        )
    return found


@cache
def _outcome() -> _Outcome:
    if os.environ.get(_SWITCH, "1") == "0":
        return _Outcome(None, f"{_SWITCH}=0 is set")
    if sys.platform != "linux":
        return _Outcome(None, f"the kernels are for Linux, this is {sys.platform}")
    compiler = _compiler()
    if compiler is None:
        return _Outcome(None, f"no C compiler ({', '.join(_COMPILERS)}, or $CC) is on the path")
    try:
        return _Outcome(_load(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        words = shlex.join(compiler)
        reason = f"{words} could not compile or load the kernels: {_message(error)}"
        return _Outcome(None, reason, failed=True)


def _compiler() -> list[str] | None:
    """Return the words that call it: $CC may be ``ccache gcc``."""
    named = _words(os.environ.get("CC", ""))
    for words in (named, *([name] for name in _COMPILERS)):
        found = shutil.which(words[0]) if words else None
        if found:
            return [found, *words[1:]]
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote that nothing closes
        return []


def _message(error: Exception) -> str:
    lines = str(getattr(error, "stderr", None) or error).strip().split("\n")
    return next((line for line in lines if "error" in line), lines[0])


def _load(compiler: list[str]) -> ctypes.CDLL:
    """Return the library, from the cache, or built for this process where no cache can be had."""
    try:
        loaded = ctypes.CDLL(str(_cached(_cache(), compiler)))
    except OSError:  # read-only, full, somebody else's, or nothing is loaded from there
        with tempfile.TemporaryDirectory(prefix="convattn-") as folder:
            loaded = ctypes.CDLL(str(_build_in(folder, compiler)))  # loaded, it needs no file
    # clang's threads would go on spinning for 200 ms on the cores that PyTorch's threads need next.
    calm = getattr(loaded, "kmp_set_blocktime", None)
    if calm is not None:
        calm(0)
    return loaded


def _cached(folder: Path, compiler: list[str]) -> Path:
    """Return the library in the cache, built there unless it lies there whole."""
    target = folder / f"kernels-{_key(compiler)}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # which its parents do not get
    _check_private(folder)
    if not _is_whole(target):
        # Processes that start together each build their own, and the last one stays.
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            built = _build_in(unfinished, compiler)
            content = built.read_bytes()
            built.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(built, target)
    return target


def _check_private(folder: Path) -> None:
    """Raise where others could have put a library for us to run."""
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}")


def _is_whole(library: Path) -> bool:
    """Whether a library ends with the digest of the rest: a full disk may have cut it short."""
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _build_in(folder: str, compiler: list[str]) -> Path:
    target = Path(folder) / "kernels.so"
    sources = [str(_FOLDER / name) for name in _SOURCES if name.endswith(".c")]
    command = [*compiler, *_flags(compiler), *sources, "-o", str(target), "-lm"]
    subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=120
    )
    return target


def _flags(compiler: list[str]) -> list[str]:
    """Return the flags: for this processor, unless $CC names one: ``gcc -march=x86-64-v3``."""
    named = any(word.startswith(("-march=", "-mcpu=")) for word in compiler)
    return [flag for flag in _FLAGS if not (named and flag.startswith("-march="))]


def _cache() -> Path:
    """Return a folder of the kernels' own: others of its parent are data sets, made by others."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be ignored, its specification says
        return Path(base) / "convattn" / "kernels"
    try:
        return Path.home() / ".cache" / "convattn" / "kernels"
    except RuntimeError as error:
        raise FileNotFoundError("the user has no home") from error


def _key(compiler: list[str]) -> str:
    """Return what tells one build from another: source, compiler, processor."""
    asked = [*compiler, "--version"]
    version = subprocess.run(
        asked, check=True, capture_output=True, text=True, errors="replace", timeout=30
    )
    parts = [(_FOLDER / name).read_bytes() for name in _SOURCES]
    command = " ".join([*compiler, *_flags(compiler)])
    parts += [s.encode() for s in (version.stdout, command, _processor())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> str:
    """Return what the processor can do: a home may be shared by machines that differ."""
    names = ("model name", "flags", "Features", "CPU part", "isa")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in names)
