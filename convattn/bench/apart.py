"""Computations in processes of their own, which take turns.

Within one process the time of a computation depends on what ran before: the C library keeps freed
memory or gives it back, and Linux hands out anew what was given back, page by page. Here every
computation has a process that ran nothing else. All start at once; then one after another builds,
and only one computes at any time.

    parent                          worker
           "prepare"       ->       builds, calls once, measures the memory
           Facts           <-
           repeats         ->       calls so often
           seconds         <-
           closes the pipe ->       ends

A worker ends as well when its parent does, which closes the pipe; a keyboard's interrupt is for the
parent alone, which ends all its workers.
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

_REST = 0.004  # seconds in which a process that sleeps computes next to nothing
_RESTLESS = 0.3  # seconds after which nobody waits for that any more
_PATIENCE = 10.0  # seconds for a process to end by itself
_spawn = multiprocessing.get_context("spawn")  # a fork has OpenMP's locks, but not its threads


class CaseError(ChildProcessError):
    """A computation failed in its process, or its process did."""

    def __init__(self, name: str, reason: str, kind: str = "") -> None:
        super().__init__(f"{name} failed: {kind}: {reason}" if kind else f"{name}: {reason}")
        self.reason = reason  # as `first_line` gives it of the error itself


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or what it is."""
    if isinstance(error, CaseError):
        return error.reason
    return str(error).strip().split("\n")[0] or type(error).__name__


class Worker:
    """A computation's process, as its parent sees it."""

    def __init__(self, case: Case, device: str, clock: Clock) -> None:
        self.name = case.name
        self._pipe, self._theirs = _spawn.Pipe()
        arguments = (self._theirs, _pickled(case), device, clock, _settings())
        self._process = _spawn.Process(target=_work, args=arguments, name=f"bench {case.name}")

    def start(self) -> None:
        """Start the process, which waits to be asked."""
        try:
            with _no_interrupt():
                self._process.start()
        finally:
            self._theirs.close()

    def prepare(self) -> Ready:
        """Let it build its computation."""
        facts = self._ask("prepare")
        assert isinstance(facts, Facts)
        return Ready(self, facts)

    def seconds(self, repeats: int) -> float:
        """Return the seconds of so many calls."""
        return float(self._ask(repeats))

    def __call__(self) -> object:
        """Call the computation."""
        return self.seconds(1)

    def dismiss(self) -> None:
        """Ask nothing more: the process ends."""
        self._pipe.close()

    def end(self) -> None:
        """Let the process end, and wait for it."""
        self.dismiss()
        self._wait(_PATIENCE)

    def kill(self) -> None:
        """End the process in the middle of what it does; `end` waits for it."""
        if self._process.pid is not None:
            self._process.terminate()

    def _ask(self, question: object) -> Any:
        try:
            self._pipe.send(question)
            # A child of a dead process may hold its end of the pipe open.
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
        if self._process.pid is None:  # was never started
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
        """Let the process of a computation build it; one that fails ends."""
        worker = self._workers[case.name]
        try:
            return worker.prepare()
        except CaseError:
            worker.end()
            raise

    def clock(self, call: Call, repeats: int) -> float:
        """Return the seconds of so many calls of a worker."""
        assert isinstance(call, Worker)
        return call.seconds(repeats)


@contextmanager
def apart(cases: Sequence[Case], device: str, clock: Clock) -> Iterator[Workers]:
    """Give every computation a process, and end them all.

    Args:
        cases: what to run; pickled, all but the function that counts multiply-adds.
        device: where.
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
    """An error in a worker, as it goes through the pipe."""

    kind: str
    reason: str
    trace: str


class _TraceError(Exception):
    """Where in a worker an error was raised: the cause of the one in the parent."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _pickled(case: Case) -> bytes:
    try:
        return pickle.dumps(replace(case, macs=None))
    except Exception as error:  # what is pickled raises what it likes
        raise TypeError(
            f"{case.name} cannot run in a process of its own, as it cannot be pickled ({error}): "
            "let `build` be a function of a module, or a functools.partial of one, or measure all "
            "in one process"
        ) from error


def _settings() -> tuple[int, str]:
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


def _work(pipe: Connection, pickled: bytes, device: str, clock: Clock, settings: Any) -> None:
    """Do what the parent asks for, until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # compilers tidy up
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
    except (EOFError, OSError):  # nobody asks any more
        pass


def _try(answer: Callable[[Any], Facts | float], question: Any) -> Facts | float | _Failure:
    try:
        return answer(question)
    except Exception as error:  # compilers of kernels have errors of their own
        return _Failure(type(error).__name__, first_line(error), traceback.format_exc())


def _rest() -> None:
    """Wait until all threads sleep: OpenMP's wait busily for more work, for some 6 ms or for 200.

    A process whose turn came meanwhile would share the cores with them: a ResNet-18 at 64 pixels
    took 18 ms in place of 12.
    """
    end = time.perf_counter() + _RESTLESS
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(_REST)
        if time.process_time() - before < _REST / 4:
            return


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold back a keyboard's interrupt; a process that starts meanwhile never gets one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would let the interrupt in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
