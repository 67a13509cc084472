"""Compile C files for this machine, and store the build in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

COMPILERS = ("gcc", "cc", "clang")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-w",  # the tests compile with warnings enabled
)
TIMEOUT = 60  # limit of the compilation in seconds: it takes 4, or up to 30 on busy cores
VERSION_TIMEOUT = 5  # limit of `--version` in seconds
PATIENCE = 2  # seconds of compilation after which a warning is logged
_log = logging.getLogger("convattn")


class Source(NamedTuple):
    """C files, and the headers that they include."""

    folder: Path
    files: tuple[str, ...]


def find() -> list[str] | None:
    """Return the words of the compiler's command; $CC may have several, as in ``ccache gcc``."""
    named = _words(os.environ.get("CC", ""))
    for words in (named, *([name] for name in COMPILERS)):
        found = shutil.which(words[0]) if words else None
        if found:
            return [found, *words[1:]]
    return None


def version(compiler: list[str]) -> str:
    """Return the first line of a compiler's ``--version``; "" if there is none."""
    try:
        return _version(compiler, check=False).partition("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cache_folder() -> Path:
    """Return the folder of the builds, which contains nothing else.

    Other folders of its parent contain data sets, to which other users may write.

    Raises:
        FileNotFoundError: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification says that relative paths are ignored
        return Path(base) / "convattn" / "kernels"
    try:
        return Path.home() / ".cache" / "convattn" / "kernels"
    except RuntimeError as error:
        raise FileNotFoundError("the user has no home") from error


def load(source: Source, compiler: list[str]) -> tuple[ctypes.CDLL, str]:
    """Return the library and the name of its build, from the cache if the cache can be used.

    Raises:
        OSError: the library cannot be built or loaded.
        subprocess.SubprocessError: the compiler fails, or takes longer than `TIMEOUT` or
            `VERSION_TIMEOUT`.
    """
    try:
        build = _cached(source, cache_folder(), compiler)
        loaded = ctypes.CDLL(str(build))
    except OSError:  # the cache is read-only, full, another user's, or mounted noexec
        with tempfile.TemporaryDirectory(prefix="convattn-") as folder:
            build = _build_in(source, Path(folder), compiler)
            loaded = ctypes.CDLL(str(build))  # a loaded library needs no file
    # Without this, clang's OpenMP threads spin for 200 ms on cores that PyTorch's threads need.
    set_blocktime = getattr(loaded, "kmp_set_blocktime", None)
    if set_blocktime is not None:
        set_blocktime(0)
    return loaded, build.stem


def reason(error: Exception) -> str:
    """Return the reason why a compiler failed, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took more than {error.timeout:.0f} s"
    lines = str(getattr(error, "stderr", None) or error).strip().split("\n")
    return next((line for line in lines if "error" in line), lines[0])


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote is not closed
        return []


def _cached(source: Source, folder: Path, compiler: list[str]) -> Path:
    """Return the build in the cache; compile it if it is missing or incomplete."""
    target = folder / f"kernels-{_key(source, compiler)}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # its parents do not get this mode
    _check_private(folder)
    if not _is_whole(target):
        # Processes that start at the same time compile one build each; the last one remains.
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            built = _build_in(source, Path(unfinished), compiler)
            content = built.read_bytes()
            built.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(built, target)
    return target


def _check_private(folder: Path) -> None:
    """Raise an error if another user could have written a library to the folder."""
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"other users may write to {folder}")


def _is_whole(build: Path) -> bool:
    """Return whether a build ends with the digest of its content: a full disk truncates it."""
    try:
        content = build.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _build_in(source: Source, folder: Path, compiler: list[str]) -> Path:
    target = folder / "kernels.so"
    files = [str(source.folder / name) for name in source.files if name.endswith(".c")]
    command = [*compiler, *_flags(compiler), *files, "-o", str(target), "-lm"]
    with _announced(shlex.join(compiler)):
        subprocess.run(
            command, check=True, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    return target


@contextmanager
def _announced(compiler: str) -> Iterator[None]:
    """Log that kernels are compiled, and log it as a warning if the compilation is slow."""
    message = "compiling the C kernels for this processor with %s; this is done once, within %d s"
    _log.info(message, compiler, TIMEOUT)
    timer = threading.Timer(PATIENCE, _log.warning, (message, compiler, TIMEOUT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _flags(compiler: list[str]) -> list[str]:
    """Return the flags, without ``-march`` if $CC has one, as in ``gcc -march=x86-64-v3``."""
    named = any(word.startswith(("-march=", "-mcpu=")) for word in compiler)
    return [flag for flag in FLAGS if not (named and flag.startswith("-march="))]


def _key(source: Source, compiler: list[str]) -> str:
    """Return a digest of the source files, the compiler, the flags and the processor."""
    parts = [(source.folder / name).read_bytes() for name in source.files]
    command = " ".join([*compiler, *_flags(compiler)])
    parts += [s.encode() for s in (_version(compiler, check=True), command, _processor())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _version(compiler: list[str], *, check: bool) -> str:
    command = [*compiler, "--version"]
    return subprocess.run(
        command,
        check=check,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=VERSION_TIMEOUT,
    ).stdout


def _processor() -> str:
    """Return the processor's model and instructions: different machines may share a home."""
    names = ("model name", "flags", "Features", "CPU part", "isa")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in names)
