"""A training that is asked to stop saves its state first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from convattn.training.checkpoints import AGREE_EVERY, KeepCheckpoints

_ONE_REQUEST = 0.5  # seconds in which several signals are one request: timeout(1) sends two


class TrainingInterruptedError(Exception):
    """The training was asked to stop and has saved its state."""


class StopOnSignal(Callback):
    """Stop a training on Ctrl-C (SIGINT) and when a cluster ends the job (SIGTERM).

    The training saves a checkpoint after the update at hand and stops. A signal in the validation
    takes effect after it. A second Ctrl-C ends the process at once, without saving. Several
    processes decide together every few batches, since one of them alone cannot stop.

    Args:
        checkpoints: saves the state.
        say: shows a message.
    """

    def __init__(self, checkpoints: KeepCheckpoints, say: Callable[[str], None]) -> None:
        self.checkpoints = checkpoints
        self.say = say
        self.asked = False
        self._asked_at = 0.0
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Handle the signals until `release`; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def release(self) -> None:
        """Restore the handlers from before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the handler of SIGTERM that Lightning has set: it raises SystemExit."""
        if self._before and not self.asked:
            signal.signal(signal.SIGTERM, self._handle)

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
        if trainer.world_size > 1 and done % AGREE_EVERY:
            return
        if self._all_asked(trainer):
            self.checkpoints.save_now(trainer, done)
            raise TrainingInterruptedError

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs; the first is validated and saved."""
        if self._all_asked(trainer):
            raise TrainingInterruptedError

    def _all_asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loading process that inherited this handler
        now = time.monotonic()
        if not self.asked:
            self.asked, self._asked_at = True, now
            self.say("Stopping after this step ... (Ctrl-C again: at once, without saving)")
        elif number == signal.SIGINT and now - self._asked_at > _ONE_REQUEST:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
