"""Run each computation in its own process; the processes take turns.

Within one process the time of a computation depends on the earlier ones: the C library keeps freed
memory or returns it to Linux, and returned memory has to be mapped again, page by page. Here every
process runs one computation only. All processes start together, then they build their computations
one after another, and only one process computes at any time.

    parent                          worker
           "prepare"       ->       builds, calls once, measures the memory
           Facts           <-
           repeats         ->       calls the computation ``repeats`` times
           seconds         <-
           closes the pipe ->       ends

A worker also ends when its parent ends, because that closes the pipe. Workers ignore Ctrl-C; the
parent handles it and ends all workers.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from convattn.bench.cases import Case, Facts, Ready, prepare
from convattn.bench.timing import Call, Clock

_REST = 0.004  # seconds between two readings of the CPU time; a sleeping process uses almost none
_RESTLESS = 0.3  # seconds after which `_rest` stops waiting for the threads
_PATIENCE = 10.0  # seconds that a process has to end by itself
_spawn = multiprocessing.get_context("spawn")  # a fork copies OpenMP's locks, but not its threads


class CaseError(ChildProcessError):
    """A computation raised an error in its process, or the process ended."""

    def __init__(self, name: str, reason: str, kind: str = "") -> None:
        super().__init__(f"{name} failed: {kind}: {reason}" if kind else f"{name}: {reason}")
        self.reason = reason  # the first line of the original error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name if there is no message."""
    if isinstance(error, CaseError):
        return error.reason
    return str(error).strip().split("\n")[0] or type(error).__name__


class Worker:
    """The parent's side of a computation's process."""

    def __init__(self, case: Case, device: str, clock: Clock) -> None:
        self.name = case.name
        self._pipe, self._theirs = _spawn.Pipe()
        arguments = (self._theirs, _pickled(case), device, clock, _settings())
        self._process = _spawn.Process(target=_work, args=arguments, name=f"bench {case.name}")

    def start(self) -> None:
        """Start the process, which then waits for a question."""
        try:
            with _no_interrupt():
                self._process.start()
        finally:
            self._theirs.close()

    def prepare(self) -> Ready:
        """Let the process build its computation."""
        facts = self._ask("prepare")
        assert isinstance(facts, Facts)
        return Ready(self, facts)

    def seconds(self, repeats: int) -> float:
        """Return the seconds of ``repeats`` calls."""
        return float(self._ask(repeats))

    def __call__(self) -> object:
        """Call the computation once and return its seconds."""
        return self.seconds(1)

    def dismiss(self) -> None:
        """Close the pipe, so that the process ends."""
        self._pipe.close()

    def end(self) -> None:
        """Close the pipe and wait until the process has ended."""
        self.dismiss()
        self._wait(_PATIENCE)

    def kill(self) -> None:
        """Terminate the process during its computation; `end` waits for it."""
        if self._process.pid is not None:
            self._process.terminate()

    def _ask(self, question: object) -> Any:
        try:
            self._pipe.send(question)
            # A child of a process that has ended may hold its end of the pipe open.
            while not self._pipe.poll(0.5) and self._process.is_alive():
                pass
            answer = self._pipe.recv() if self._pipe.poll() else None
        except (EOFError, OSError):  # the other end is closed
            answer = None
        if answer is None:
            raise CaseError(self.name, self._death())
        if isinstance(answer, _Failure):
            raise CaseError(self.name, answer.reason, answer.kind) from _TraceError(answer.trace)
        return answer

    def _death(self) -> str:
        self._wait(_PATIENCE)
        code = self._process.exitcode or 0
        if code >= 0:
            return f"its process ended with exit status {code}"
        killed = -code == getattr(signal, "SIGKILL", 0)
        hint = ", as where memory is short" if killed else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"

    def _wait(self, seconds: float) -> None:
        if self._process.pid is None:  # the process was never started
            return
        self._process.join(seconds)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                stop()
                self._process.join(seconds)


class Workers:
    """The processes of a group."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = {worker.name: worker for worker in workers}

    def prepare(self, case: Case) -> Ready:
        """Let the process of a computation build it; a process that fails is ended."""
        worker = self._workers[case.name]
        try:
            return worker.prepare()
        except CaseError:
            worker.end()
            raise

    def clock(self, call: Call, repeats: int) -> float:
        """Return the seconds of ``repeats`` calls in a worker."""
        assert isinstance(call, Worker)
        return call.seconds(repeats)


@contextmanager
def apart(cases: Sequence[Case], device: str, clock: Clock) -> Iterator[Workers]:
    """Start a process for every computation; on exit all processes are ended.

    Args:
        cases: the computations; they are pickled without the function that counts multiply-adds.
        device: the device that they run on.
        clock: times a sample in the process.

    Raises:
        TypeError: a computation cannot be pickled.
    """
    workers = [Worker(case, device, clock) for case in cases]
    try:
        for worker in workers:
            worker.start()
        yield Workers(workers)
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    finally:
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.end()


@dataclass(frozen=True)
class _Failure:
    """An error in a worker, in a form that can be sent through the pipe."""

    kind: str
    reason: str
    trace: str


class _TraceError(Exception):
    """The traceback of an error in a worker: the cause of the error in the parent."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _pickled(case: Case) -> bytes:
    try:
        return pickle.dumps(replace(case, macs=None))
    except Exception as error:  # a pickled object may raise any error
        raise TypeError(
            f"{case.name} cannot run in a process of its own, as it cannot be pickled ({error}): "
            "let `build` be a function of a module, or a functools.partial of one, or measure all "
            "in one process"
        ) from error


def _settings() -> tuple[int, str]:
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


def _work(pipe: Connection, pickled: bytes, device: str, clock: Clock, settings: Any) -> None:
    """Answer the parent's questions until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # compilers remove their files
    threads, precision = settings
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.benchmark = True
    call: Call | None = None

    def answer(question: Any) -> Facts | float:
        nonlocal call
        if call is not None:
            return clock(call, question)
        ready = prepare(pickle.loads(pickled), device)
        call = ready.call
        return ready.facts

    try:
        while True:
            done = _try(answer, pipe.recv())
            _rest()
            pipe.send(done)
    except (EOFError, OSError):  # the parent has closed the pipe
        pass


def _try(answer: Callable[[Any], Facts | float], question: Any) -> Facts | float | _Failure:
    try:
        return answer(question)
    except Exception as error:  # compilers of kernels define their own errors
        return _Failure(type(error).__name__, first_line(error), traceback.format_exc())


def _rest() -> None:
    """Wait until all threads sleep: OpenMP's threads spin for 6 to 200 ms after their last work.

    The next process would share the cores with spinning threads: a ResNet-18 at 64 pixels then took
    18 ms instead of 12.
    """
    end = time.perf_counter() + _RESTLESS
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_REST)
        if time.process_time() - before < _REST / 4:
            return


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Block Ctrl-C; a process that starts meanwhile never receives it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
