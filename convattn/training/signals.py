"""Signals that stop a training; a checkpoint is saved first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from convattn.data import is_lost_worker
from convattn.training.checkpoints import KeepCheckpoints, is_decided
from convattn.training.slurm import is_slurm_job

_ONE_REQUEST = 0.5  # seconds in which several signals count as one: timeout(1) sends two
_SAME_MOMENT = 0.2  # seconds in which a signal to all processes of a job reaches all of them


class TrainingInterruptedError(Exception):
    """A signal stopped the training, and a checkpoint was saved."""


class StopNow(BaseException):
    """A signal stopped work that needs no checkpoint."""


class StopRequest:
    """Record a signal to stop, while the context is entered.

    The signals are SIGINT (Ctrl-C), SIGTERM (a cluster or a supervisor ends the job), SIGHUP (the
    terminal was closed; not under nohup) and, in a SLURM job, SIGUSR1 (its time is nearly over). A
    second Ctrl-C ends the process at once.

    Args:
        say: prints a message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number: int | None = None  # of the first signal
        self._say = say
        self._received_at = 0.0
        self._at_once = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    @property
    def is_received(self) -> bool:
        """Whether a signal was received."""
        return self.number is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other thread can
            for number in _signals():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal raise `StopNow`, which the end of this context catches."""
        self._at_once = True
        try:
            yield
        except StopNow:
            pass
        finally:
            self._at_once = False

    def accept_in_this_process(self) -> None:
        """Record signals in this process from now on: a strategy may have forked it."""
        self._process = os.getpid()

    def accept_ended_workers(self) -> None:
        """Finish the current update if a signal ends the loading processes too.

        When a loading process ends, PyTorch raises an error in the main process at once. After a
        signal this error is raised only where a batch is missing.
        """
        if signal.SIGCHLD in self._before or not self._before:
            return
        report = signal.getsignal(signal.SIGCHLD)
        if not callable(report):
            return

        def handle(number: int, frame: FrameType | None) -> None:
            end = time.monotonic() + _SAME_MOMENT
            while not self.is_received and time.monotonic() < end:
                time.sleep(0.01)  # the signal may reach this process later
            if not self.is_received:
                report(number, frame)

        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loading process that inherited this handler
        now = time.monotonic()
        is_first = not self.is_received
        if is_first:
            self.number, self._received_at = number, now
        elif now - self._received_at < _ONE_REQUEST:
            return
        if self._at_once:
            raise StopNow
        if is_first:
            with contextlib.suppress(Exception):  # the terminal is closed, or is being written to
                self._say("Stopping after this step ... (Ctrl-C again: at once, without saving)")
        elif number == signal.SIGINT:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


class StopOnSignal(Callback):
    """Save a checkpoint after the current update and stop, once a signal was received.

    A signal during the validation takes effect after the validation. Several processes decide
    jointly every few batches, since one process alone cannot stop. If the signal ended the loading
    processes too, so that a batch is missing, the last whole update is saved.

    Args:
        request: records the signals.
        checkpoints: saves the checkpoint.
    """

    def __init__(self, request: StopRequest, checkpoints: KeepCheckpoints) -> None:
        self.request = request
        self.checkpoints = checkpoints
        self._whole = 0  # batches up to the last update; 0 while another batch is computed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Disable Lightning's signal handlers: its handler of SIGTERM raises SystemExit."""
        self.request.accept_in_this_process()
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the first batch, after the loading processes were started."""
        self.request.accept_ended_workers()
        self._stop_if_received(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs; the earlier one is validated and saved."""
        self._stop_if_received(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record that an update has begun."""
        self._whole = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop within an epoch, except after the last batch, which the validation follows."""
        done = batch_idx + 1
        if done == trainer.num_training_batches or done % trainer.accumulate_grad_batches:
            return
        self._whole = done
        if is_decided(trainer, done) and self._is_received_by_any(trainer):
            self.checkpoints.save_now(trainer, done)
            raise TrainingInterruptedError

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last whole update if the signal ended the loading processes."""
        if self._whole and trainer.world_size == 1 and self.counts(exception):
            self.checkpoints.save_now(trainer, self._whole)

    def counts(self, error: BaseException) -> bool:
        """Return whether the signal to stop caused an error of the training."""
        return self.request.is_received and is_lost_worker(error)

    def _stop_if_received(self, trainer: pl.Trainer) -> None:
        if self._is_received_by_any(trainer):
            raise TrainingInterruptedError

    def _is_received_by_any(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.request.is_received
        return trainer.strategy.reduce_boolean_decision(self.request.is_received, all=False)


def _signals() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [*numbers, signal.SIGUSR1] if is_slurm_job() else numbers
