"""Compile and load the kernels in C, or return the reason why they cannot be used.

The first call that needs a kernel compiles and loads the library, compares its ABI with the ABI
that this package calls, and tests each kernel on a few numbers (`self_check`). The test takes
milliseconds.
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
    """Replace the lock in a forked process: the thread that could release it does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class NotAvailableError(RuntimeError):
    """The kernels cannot be used on this machine; the message says why."""


class Status(NamedTuple):
    """The state of the kernels on this machine."""

    reason: str  # why the kernels cannot be used; "" if they can
    compiler: str  # the command of the compiler; "" if no compiler is found
    version: str  # the first line of the compiler's --version
    cache: Path | None  # the folder of the builds; None if there is none
    builds: tuple[Path, ...]  # the builds in the folder, also of machines that share it


class _Outcome(NamedTuple):
    kernels: Kernels | None
    reason: str = ""  # why the kernels cannot be used
    failed: bool = False  # whether a compiler is found, and the kernels cannot be used
    build: str = ""  # name of the build


class Library:
    """Kernels that are compiled from C files at the first call."""

    def __init__(self, source: compiler.Source = SOURCE) -> None:
        self.source = source
        self._outcome: _Outcome | None = None
        self._warned = False

    def kernels(self) -> Kernels:
        """Return the compiled kernels.

        Raises:
            NotAvailableError: no compiler is found, the compiler fails, a kernel returns a wrong
                result, or ``CONVATTN_NATIVE=0`` is set.
        """
        outcome = self._outcome or self._find()
        if outcome.kernels is None:
            raise NotAvailableError(
                f"backend 'native': {outcome.reason}; backend 'auto' takes another path; "
                "`convattn doctor` shows more"
            )
        return outcome.kernels

    def why_not_available(self) -> str | None:
        """Return why the kernels cannot be used, or None if they can; a failure warns once."""
        outcome = self._outcome or self._find()
        if outcome.failed and not self._warned:
            self._warned = True  # first, since a warning filter may raise an error
            warnings.warn(
                f"{outcome.reason}. Slower operators of PyTorch are used instead; {_SWITCH}=0 "
                "disables this warning",
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
        """Return the state of the kernels; the first call compiles them."""
        reason, command = self._find().reason, compiler.find() or []
        try:
            cache = compiler.cache_folder()
            builds = tuple(sorted(cache.glob("kernels-*.so")))
        except OSError:
            cache, builds = None, ()
        version = compiler.version(command) if command else ""
        return Status(reason, shlex.join(command), version, cache, builds)

    def describe(self) -> str:
        """Return one line on the kernels in use, for the environment and the card of a run."""
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
        return _Outcome(None, f"the kernels need Linux, this is {sys.platform}")
    command = compiler.find()
    if command is None:
        names = ", ".join(compiler.COMPILERS)
        return _Outcome(None, f"no C compiler ({names}, or $CC) is found")
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
    """Return why the kernels of this package cannot be used; None if they can."""
    return installed.why_not_available()


def status() -> Status:
    """Return the state of the kernels of this package; see `Library.status`."""
    return installed.status()


def describe() -> str:
    """Return one line on the kernels in use; see `Library.describe`."""
    return installed.describe()
