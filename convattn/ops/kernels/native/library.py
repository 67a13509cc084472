"""The functions of the kernels in C, or the reason why they cannot be used.

The first call that needs a kernel compiles and loads the library, compares its ABI with the ABI
that this package calls, and tests each kernel on a few numbers (`self_check`). The test takes
milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import torch

from convattn.ops.kernels.native import compiler

SOURCE = compiler.Source(
    Path(__file__).parent, ("vectors.h", "products.h", "sliding.c", "rows.c", "heads.c")
)
# Change it with every change of a signature or a struct, here and in `vectors.h`.
ABI_VERSION = 1
DTYPES = (torch.float32, torch.bfloat16)

# Structs of the C files, where their fields are documented; each field has 8 bytes.
MAP = Struct("@6q")  # data, image, channel, row, column, half
MAPS = {count: Struct(f"@{6 * count}q") for count in (4, 5, 8)}
SLIDING_TASK = Struct("@12qd")
HEADS_TASK = Struct("@8qd3q")

_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "x": ctypes.c_float}
# A letter for each argument: p address, n integer, x float. Functions return an integer or nothing.
_SIGNATURES = {
    "rows_abi": "",
    "rows_layer_norm": "ppppppnnxnn",
    "rows_directions": "ppnnxxnn",
    "rows_similarities": "pppppnnnnnxnn",
    "rows_workspace": "nn",
    "rows_scale": "ppnnnn",
    "heads_abi": "",
    "heads_workspace": "p",
    "heads": "pppp",
    "sliding_abi": "",
    "sliding_workspace": "pn",
    "sliding": "pppn",
}
_ABI = {"rows_abi": 0, "heads_abi": HEADS_TASK.size, "sliding_abi": SLIDING_TASK.size}

_SWITCH = "CONVATTN_NATIVE"
_lock = threading.Lock()
_has_started_threads = False  # whether a kernel has had more than one thread
_has_lost_threads = False  # whether this process was forked after that


def _forget_threads() -> None:
    """Replace the lock in a forked process, which has no copy of the threads of its parent."""
    global _lock, _has_lost_threads
    _lock = threading.Lock()
    _has_lost_threads = _has_started_threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


class AbiError(RuntimeError):
    """The signatures or structs of a compiled library differ from those of this package."""


class WrongResultError(RuntimeError):
    """The result of a compiled kernel differs from its formula."""


class Kernels:
    """The functions of a compiled library, as attributes.

    Raises:
        AbiError: the ABI of the library differs from the ABI of this package.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, kinds in _SIGNATURES.items():
            function = getattr(library, name, None)
            if function is None:
                raise AbiError(f"the compiled kernels have no function {name!r}")
            function.restype, function.argtypes = ctypes.c_int64, [_TYPES[kind] for kind in kinds]
            setattr(self, name, function)
        for name, task_size in _ABI.items():
            expected, found = (ABI_VERSION, task_size, MAP.size), _unpack_abi(getattr(self, name)())
            if found != expected:
                raise AbiError(
                    f"the compiled kernels have ABI {found} in {name!r}, this package calls "
                    f"{expected}"
                )

    def __getattr__(self, name: str) -> Any:  # for type checkers: `__init__` sets all functions
        raise AttributeError(name)


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


def _unpack_abi(number: int) -> tuple[int, int, int]:
    """Unpack an ABI number of the library: version, size of a task and of a map in bytes."""
    return number >> 32, number >> 16 & 0xFFFF, number & 0xFFFF


def _load(source: compiler.Source) -> _Outcome:
    from convattn.ops.kernels.native.self_check import check_kernels  # it imports this module

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


def threads() -> int:
    """Return the number of threads of a kernel, which is 1 if a fork has lost OpenMP's threads.

    A forked process would wait forever for threads that OpenMP has started before the fork.
    """
    global _has_started_threads
    if _has_lost_threads:
        return 1
    count = torch.get_num_threads()
    _has_started_threads = _has_started_threads or count > 1
    return count


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


def is_half(*tensors: torch.Tensor) -> bool:
    """Return True if all tensors are bfloat16, and False if all are float32.

    Raises:
        TypeError: the tensors have another dtype, or different dtypes.
    """
    dtype = tensors[0].dtype
    for t in tensors:
        if t.dtype != dtype or dtype not in DTYPES:
            found = ", ".join(str(t.dtype) for t in tensors)
            raise TypeError(f"kernels in C compute float32 or bfloat16, one of them, got {found}")
    return dtype == torch.bfloat16


def workspace(like: torch.Tensor, size: int) -> torch.Tensor:
    """Return scratch memory of ``size`` floats on the device of a tensor."""
    return like.new_empty(size if like.dtype == torch.float32 else 2 * size)
