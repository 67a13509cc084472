"""Loading processes: the signals they receive, their end, and the errors of a lost process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from torch import Tensor
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
    """A collate function that puts the batch into shared memory in a loading process.

    PyTorch would do so on another thread, where an error is only printed, and the main process
    would wait for the batch forever.

    Args:
        collate: makes a batch of samples.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        """Return the batch; raise `SharedMemoryFullError` where there is no space for it."""
        try:
            batch = self.collate(samples)
            if get_worker_info() is not None:
                _share(batch)
            return batch
        except RuntimeError as error:
            if _NO_SPACE in str(error):
                raise SharedMemoryFullError from error
            raise


def _share(value: Any) -> None:
    """Move each tensor in dicts and lists to shared memory."""
    if isinstance(value, Tensor):
        value.share_memory_()
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            _share(part)


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
