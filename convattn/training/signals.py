"""A training that is asked to stop saves its state first."""

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

_ONE_REQUEST = 0.5  # seconds in which several signals are one request: timeout(1) sends two
_SAME_MOMENT = 0.2  # seconds in which a signal to all processes of a job reaches all of them


class TrainingInterruptedError(Exception):
    """The training was asked to stop and has saved its state."""


class StopNow(BaseException):
    """Work that needs no end was asked to stop."""


class StopRequest:
    """Note a signal that asks for a stop, while the context is entered.

    The signals are SIGINT (Ctrl-C), SIGTERM (a cluster or a supervisor ends the job), SIGHUP (the
    terminal was closed; not under nohup) and, in a SLURM job, SIGUSR1 (its time is nearly over). A
    second Ctrl-C ends the process at once.

    Args:
        say: shows a message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number: int | None = None  # of the first signal
        self._say = say
        self._asked_at = 0.0
        self._at_once = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
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
        """Let a signal raise `StopNow`, which ends this context."""
        self._at_once = True
        try:
            yield
        except StopNow:
            pass
        finally:
            self._at_once = False

    def accept_in_this_process(self) -> None:
        """Note signals in this process from now on: a strategy may have forked it."""
        self._process = os.getpid()

    def accept_ended_workers(self) -> None:
        """Let the update at hand finish where a signal ends the loading processes as well.

        PyTorch raises an error wherever the main process is when a loading process ends. After a
        request to stop such an error waits until a batch is missing.
        """
        if signal.SIGCHLD in self._before or not self._before:
            return
        report = signal.getsignal(signal.SIGCHLD)
        if not callable(report):
            return

        def handle(number: int, frame: FrameType | None) -> None:
            end = time.monotonic() + _SAME_MOMENT
            while not self.asked and time.monotonic() < end:
                time.sleep(0.01)  # the signal may reach this process later
            if not self.asked:
                report(number, frame)

        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loading process that inherited this handler
        now = time.monotonic()
        is_first = not self.asked
        if is_first:
            self.number, self._asked_at = number, now
        elif now - self._asked_at < _ONE_REQUEST:
            return
        if self._at_once:
            raise StopNow
        if is_first:
            with contextlib.suppress(Exception):  # the terminal is gone, or is being written to
                self._say("Stopping after this step ... (Ctrl-C again: at once, without saving)")
        elif number == signal.SIGINT:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


class StopOnSignal(Callback):
    """Save a checkpoint after the update at hand and stop, once a `StopRequest` was made.

    A signal in the validation takes effect after it. Several processes decide together every few
    batches, since one of them alone cannot stop. Where the signal has ended the loading processes
    as well, so that a batch is missing, the last whole update is saved.

    Args:
        request: notes the signals.
        checkpoints: saves the state.
    """

    def __init__(self, request: StopRequest, checkpoints: KeepCheckpoints) -> None:
        self.request = request
        self.checkpoints = checkpoints
        self._whole = 0  # batches after which an update was whole, if nothing has begun since

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the signals to the request: Lightning's handler of SIGTERM raises SystemExit."""
        self.request.accept_in_this_process()
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the first batch; loading processes have been started."""
        self.request.accept_ended_workers()
        self._stop_if_asked(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs; the first is validated and saved."""
        self._stop_if_asked(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that the weights are about to change."""
        self._whole = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop within an epoch; after the last batch validation comes first."""
        done = batch_idx + 1
        if done == trainer.num_training_batches or done % trainer.accumulate_grad_batches:
            return
        self._whole = done
        if is_decided(trainer, done) and self._all_asked(trainer):
            self.checkpoints.save_now(trainer, done)
            raise TrainingInterruptedError

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last whole update where the signal has ended the loading processes."""
        if self._whole and trainer.world_size == 1 and self.counts(exception):
            self.checkpoints.save_now(trainer, self._whole)

    def counts(self, error: BaseException) -> bool:
        """Return whether an error of the training is a consequence of the request to stop."""
        return self.request.asked and is_lost_worker(error)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._all_asked(trainer):
            raise TrainingInterruptedError

    def _all_asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.request.asked
        return trainer.strategy.reduce_boolean_decision(self.request.asked, all=False)


def _signals() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [*numbers, signal.SIGUSR1] if is_slurm_job() else numbers
