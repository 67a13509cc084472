"""Loading processes: the signals they receive, their end, and the errors of a lost process."""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing  # registers how tensors are sent
from torch.utils.data import get_worker_info

from convattn.machine import shared_memory

_STOPS = frozenset((signal.SIGINT, signal.SIGTERM))
# Signals that the main process may handle and that would end a loading process (not on Windows).
_OTHERS = {getattr(signal, n) for n in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, n)}
_LOST = re.compile(
    r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"
    "|Pin memory thread exited unexpectedly"
)
# Modules in which a connection to a process that has ended raises EOFError or OSError.
_CONNECTIONS = ("multiprocessing.connection", "multiprocessing.resource_sharer")
# Training glnet_nano on CIFAR-10 on two cores reaches from files 47 % of the speed from memory with
# 0, 70 % with 10, 74 to 81 % with 15 and 77 % with 19 (`python -m benchmarks.loading`). The larger
# the number, the slower the loading where another program uses all cores.
_LOW_PRIORITY = 15
_NO_SPACE = "No space left on device"
_NO_FILES = "Too many open files"
_ALIGNED = 64  # bytes; a tensor starts at a multiple of it


class SharedMemoryFullError(RuntimeError):
    """The shared memory through which loading processes pass images has no space left."""

    def __init__(self, *_: object) -> None:  # PyTorch adds the worker's traceback to the arguments
        size = shared_memory()
        total = "" if size is None else f" ({size / 2**20:,.0f} MB)"
        super().__init__(
            f"/dev/shm{total} is full: loading processes pass batches through it. Load without "
            "processes (workers=0), use fewer workers or a smaller batch_size, or make /dev/shm "
            "larger: docker run --shm-size=8g or --ipc=host, on Kubernetes an emptyDir volume with "
            "medium: Memory"
        )


class BatchTransferError(RuntimeError):
    """A batch cannot be sent from a loading process to the main process."""

    def __init__(self, message: str) -> None:
        # PyTorch makes the error again from the worker's traceback, which ends with the message.
        super().__init__(message.rstrip().rsplit("BatchTransferError: ", 1)[-1])


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block signals that ask for a stop while loading processes are started: they inherit the mask.

    Without it such a signal would end a process that is still importing modules. This process
    receives the signal when the block is left.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # it unblocks both signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS | _OTHERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker_id: int, low_priority: bool = False) -> None:
    """Leave SIGINT and SIGTERM of the process group to the main process; end when that ends.

    A terminal and timeout(1) signal the whole group, and a clean stop needs the loading processes
    until the last batch. SIGTERM from the main process still ends this process.

    Args:
        worker_id: the number of this process, which PyTorch passes; not used.
        low_priority: whether the process leaves the CPU to others that can use it.
    """
    if low_priority:
        with contextlib.suppress(AttributeError, OSError):  # Windows; a system that forbids it
            os.nice(_LOW_PRIORITY)
    with contextlib.suppress(AttributeError, OSError):  # Windows; a system that forbids groups
        os.setpgid(0, 0)
    if hasattr(signal, "pthread_sigmask"):
        while pending := signal.sigpending() & _STOPS:  # came while this process was starting
            signal.sigwait(pending)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """Exit after the main process; PyTorch watches the parent, which may be a forkserver."""
    main = multiprocessing.parent_process()
    if main is not None:
        wait([main.sentinel])
        os._exit(1)


class WorkerCollate:
    """A collate function that prepares the batch for sending in a loading process.

    PyTorch would do so on another thread, where an error is only printed, and the main process
    would wait for the batch forever.

    Args:
        collate: makes a batch of samples.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        """Return the batch, in a loading process as a `_PackedBatch`.

        Raises:
            SharedMemoryFullError: there is no space for the batch in the shared memory.
            BatchTransferError: the batch cannot be sent to the main process.
        """
        try:
            batch = self.collate(samples)
        except (RuntimeError, OSError) as error:
            raise _transfer_error(error) or error from error.__cause__
        if get_worker_info() is None:
            return batch
        try:
            return _PackedBatch(batch)
        except Exception as error:  # pickling calls methods of any class
            raise _transfer_error(error) or BatchTransferError(
                f"a batch cannot be sent from a loading process: {' '.join(str(error).split())}; "
                "let targets and the collate function return tensors, arrays and other objects "
                "that can be pickled, or load without processes (workers=0)"
            ) from error


def _transfer_error(error: Exception) -> RuntimeError | None:
    """Return a clear error where shared memory or open files ran out, else None."""
    if _NO_SPACE in str(error):
        return SharedMemoryFullError()
    if _NO_FILES in str(error):
        return BatchTransferError(
            "a loading process has too many open files: allow more with `ulimit -n 8192`, or load "
            "without processes (workers=0)"
        )
    return None


class _PackedBatch:
    """A pickled batch, which unpickling turns into the batch itself.

    The tensors and arrays lie in one piece of shared memory, since each piece keeps a file open in
    both processes. Tensors that lie in shared memory already, such as stacked images, stay there.
    """

    def __init__(self, batch: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        content = io.BytesIO()
        _Pickler(content, 5, True, buffers.append).dump(batch)
        parts = [buffer.raw() for buffer in buffers]
        ends = list(itertools.accumulate(-(-part.nbytes // _ALIGNED) * _ALIGNED for part in parts))
        places = [(end, part.nbytes) for end, part in zip([0, *ends], parts, strict=False)]
        memory = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8)
        if ends:
            memory.share_memory_()
        for (start, size), part in zip(places, parts, strict=True):
            memory.numpy()[start : start + size] = part
        self._pickled = bytes(ForkingPickler.dumps((content.getvalue(), memory, places)))

    def __reduce__(self) -> Any:
        return _unpack, (self._pickled,)


def _unpack(pickled: bytes) -> Any:
    content, memory, places = pickle.loads(pickled)
    whole = memoryview(memory.numpy())
    return pickle.loads(content, buffers=[whole[start : start + size] for start, size in places])


class _Pickler(ForkingPickler):
    """Hands out the memory of tensors on the CPU that is not shared yet."""

    def reducer_override(self, value: Any) -> Any:
        is_private = (
            isinstance(value, torch.UntypedStorage)
            and value.device.type == "cpu"
            and not value.is_shared()
        )
        if not is_private:
            return NotImplemented
        values: Any = torch.empty(0, dtype=torch.uint8).set_(value).numpy()
        return _storage, (pickle.PickleBuffer(values),)


def _storage(memory: Any) -> torch.UntypedStorage:
    if not memoryview(memory).nbytes:
        return torch.UntypedStorage(0)
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


def is_lost_worker(error: BaseException) -> bool:
    """Return whether a loading process that ended unexpectedly caused the error.

    Args:
        error: what an iteration over a loader raised. PyTorch also raises such an error in other
            code of the main process, from its handler of SIGCHLD.
    """
    if isinstance(error, RuntimeError):
        return bool(_LOST.search(str(error)))
    return isinstance(error, (EOFError, OSError)) and _passes(error.__traceback__, _CONNECTIONS)


def _passes(traceback: TracebackType | None, modules: tuple[str, ...]) -> bool:
    """Return whether the traceback has a frame of one of the modules."""
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") in modules:
            return True
        traceback = traceback.tb_next
    return False
