"""The compiled kernels of this process: whether they can be used, and why not.

The first call that needs them compiles and loads them, compares their ABI with this package's, and
computes each kernel once on a few numbers (`self_check`), in milliseconds.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from convattn.ops.kernels.native import compiler
from convattn.ops.kernels.native.kernels import ABI_VERSION, AbiError, Kernels
from convattn.ops.kernels.native.self_check import WrongResultError, check_kernels

SOURCE = compiler.Source(
    Path(__file__).parent, ("vectors.h", "products.h", "sliding.c", "rows.c", "heads.c")
)
_SWITCH = "CONVATTN_NATIVE"
_lock = threading.Lock()


def _renew_lock() -> None:
    """Replace the lock in a forked process, where no other thread is left to release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class NotAvailableError(RuntimeError):
    """The kernels cannot be used on this machine; the message says why."""


class Status(NamedTuple):
    """What is known of the kernels on this machine."""

    reason: str  # why there are none; "" where they are compiled
    compiler: str  # the command that calls it; "" where none is found
    version: str  # the first line of its --version
    cache: Path | None  # where builds are kept, if anywhere
    builds: tuple[Path, ...]  # of this machine and of others that share the cache


class _Outcome(NamedTuple):
    kernels: Kernels | None
    reason: str = ""  # why there are none
    failed: bool = False  # though there is a compiler
    build: str = ""  # name of the build


class Library:
    """Kernels that are compiled from C files when they are first needed."""

    def __init__(self, source: compiler.Source = SOURCE) -> None:
        self.source = source
        self._outcome: _Outcome | None = None
        self._warned = False

    def kernels(self) -> Kernels:
        """Return the compiled kernels.

        Raises:
            NotAvailableError: there is no compiler, or it fails, the kernels compute wrongly, or
                ``CONVATTN_NATIVE=0``.
        """
        outcome = self._outcome or self._find()
        if outcome.kernels is None:
            raise NotAvailableError(
                f"backend 'native': {outcome.reason}; backend 'auto' does without; "
                "`convattn doctor` shows more"
            )
        return outcome.kernels

    def why_not_available(self) -> str | None:
        """Return why the kernels cannot be used, or None where they can; a failure warns once."""
        outcome = self._outcome or self._find()
        if outcome.failed and not self._warned:
            self._warned = True  # before the warning, of which a filter may make an error
            warnings.warn(
                f"{outcome.reason}. PyTorch's operators compute the same, slower; {_SWITCH}=0 "
                "silences this",
                RuntimeWarning,
                stacklevel=4,
            )
        if outcome.kernels is not None:
            return None
        return f"{outcome.reason} (`convattn doctor` shows more)"

    def available(self) -> bool:
        """Return whether the kernels can be used."""
        return self.why_not_available() is None

    def status(self) -> Status:
        """Return what is known of the kernels, which are compiled now if they have not been."""
        reason, command = self._find().reason, compiler.find() or []
        try:
            cache = compiler.cache_folder()
            builds = tuple(sorted(cache.glob("kernels-*.so")))
        except OSError:
            cache, builds = None, ()
        version = compiler.version(command) if command else ""
        return Status(reason, shlex.join(command), version, cache, builds)

    def describe(self) -> str:
        """Return in a line which kernels a run uses: for its environment and its model card."""
        outcome = self._find()
        if outcome.kernels is None:
            return f"PyTorch's operators: {outcome.reason}"
        return f"C, ABI {ABI_VERSION}, {outcome.build}"

    def _find(self) -> _Outcome:
        if self._outcome is None:
            with _lock:
                if self._outcome is None:
                    self._outcome = _load(self.source)
        return self._outcome


def _load(source: compiler.Source) -> _Outcome:
    if os.environ.get(_SWITCH, "1") == "0":
        return _Outcome(None, f"{_SWITCH}=0 is set")
    if sys.platform != "linux":
        return _Outcome(None, f"the kernels are for Linux, this is {sys.platform}")
    command = compiler.find()
    if command is None:
        names = ", ".join(compiler.COMPILERS)
        return _Outcome(None, f"no C compiler ({names}, or $CC) is on the path")
    try:
        loaded, build = compiler.load(source, command)
        kernels = Kernels(loaded)
        check_kernels(kernels)
    except (AbiError, WrongResultError) as error:
        return _Outcome(None, f"{shlex.join(command)}: {error}", failed=True)
    except (OSError, subprocess.SubprocessError) as error:
        why = compiler.reason(error)
        reason = f"{shlex.join(command)} could not compile or load the kernels: {why}"
        return _Outcome(None, reason, failed=True)
    return _Outcome(kernels, build=build)


# The kernels that the operators of this package call.
installed = Library()


def kernels() -> Kernels:
    """Return the compiled kernels of this package; see `Library.kernels`."""
    return installed.kernels()


@torch.compiler.assume_constant_result
def available() -> bool:
    """Return whether the kernels of this package can be used; the first call compiles them."""
    return installed.available()


@torch.compiler.assume_constant_result
def why_not_available() -> str | None:
    """Return why the kernels of this package cannot be used; None where they can."""
    return installed.why_not_available()


def status() -> Status:
    """Return what is known of the kernels of this package; see `Library.status`."""
    return installed.status()


def describe() -> str:
    """Return in a line which kernels a run uses; see `Library.describe`."""
    return installed.describe()
