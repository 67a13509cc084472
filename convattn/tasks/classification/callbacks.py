"""What happens beside the steps: checkpoints, the table of metrics, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint

from convattn.runs.card import ModelCard
from convattn.runs.folder import RunFolder
from convattn.runs.metrics import score as metrics_score
from convattn.runs.weights import save_weights
from convattn.tasks.classification.columns import BEST, METRICS
from convattn.tasks.classification.module import Classifier


class TrainingInterruptedError(Exception):
    """The training was asked to stop and has saved where it stands."""


class KeepCheckpoints(Checkpoint):
    """Write ``last`` after every epoch and ``best`` after every best one, each in two forms.

    Lightning's .ckpt holds everything to go on with; the .safetensors beside it holds the weights
    that were validated and a `ModelCard`. The best epoch has the highest top-1 accuracy, and among
    equals the lowest loss.

    Args:
        run: where to write.
        card: of the model, without epoch and metrics.
        epochs_done: before this start of the run.
    """

    def __init__(self, run: RunFolder, card: ModelCard, epochs_done: int = 0) -> None:
        self.run = run
        self.card = card
        self.best: tuple[float, ...] = (-1.0, float("-inf"))
        self.best_epoch = 0
        self.epochs_done = epochs_done  # and of the next epoch:
        self.batches_done = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after validation."""
        self.epochs_done, self.batches_done = trainer.current_epoch + 1, 0
        found = epoch_metrics(trainer)
        self.card = replace(self.card, epoch=self.epochs_done, metrics=found)
        is_best = score(found) > self.best
        if is_best:
            self.best, self.best_epoch = score(found), self.epochs_done
        # The last one says which epoch was the best, so that one has to be on disk before.
        for name in ("best", "last") if is_best else ("last",):
            trainer.save_checkpoint(self.run.checkpoints / f"{name}.ckpt")
            if trainer.is_global_zero:
                assert isinstance(pl_module, Classifier)
                weights = self.run.checkpoints / f"{name}.safetensors"
                save_weights(pl_module.evaluated.state_dict(), self.card, weights)

    def save_now(self, trainer: pl.Trainer, batches_done: int) -> None:
        """Save in the middle of an epoch, to go on from there."""
        self.epochs_done, self.batches_done = trainer.current_epoch, batches_done
        trainer.save_checkpoint(self.run.last)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the card and how far the training is."""
        checkpoint["convattn"] = {
            "card": self.card.to_json(),
            "epochs_done": self.epochs_done,
            "batches_done": self.batches_done,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training has to beat."""
        return {"best": list(self.best), "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read it back."""
        self.best = tuple(state_dict["best"])
        self.best_epoch = state_dict["best_epoch"]


class WriteMetrics(Callback):
    """Add a row to ``metrics.csv`` after every epoch.

    Args:
        run: where to write.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row."""
        if trainer.is_global_zero:
            row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            self.run.add_metrics(METRICS, {**row, **epoch_metrics(trainer)})


def epoch_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return what the epoch that ends has logged."""
    return {name: float(trainer.callback_metrics[name]) for name in METRICS[2:]}


def score(metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Return what epochs are compared by, see `convattn.runs.metrics.score`."""
    return metrics_score(metrics, BEST)


class StopOnSignal(Callback):
    """End cleanly on Ctrl-C, or when a cluster takes the machine back (SIGTERM).

    That is after the step at hand, with a checkpoint to go on from. A second Ctrl-C ends at once.
    Several processes agree every few steps, since one of them alone cannot stop.

    Args:
        checkpoints: saves where the training stands.
        say: shows a message.
    """

    _AGREE_EVERY = 20

    def __init__(self, checkpoints: KeepCheckpoints, say: Callable[[str], None]) -> None:
        self.checkpoints = checkpoints
        self.say = say
        self.asked = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take over the signals until `release`; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop in the middle of an epoch; its last batch leaves that to the epoch's end."""
        done = batch_idx + 1
        if trainer.world_size > 1 and done % self._AGREE_EVERY:
            return
        if done == trainer.num_training_batches:
            return
        # Lightning itself ends after this batch on SIGTERM; Ctrl-C can wait for the update.
        if done % trainer.accumulate_grad_batches and not trainer.received_sigterm:
            return
        if self._all_asked(trainer):
            self.checkpoints.save_now(trainer, done)
            raise TrainingInterruptedError

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs, of which the first has been validated and saved."""
        if self._all_asked(trainer):
            raise TrainingInterruptedError

    def _all_asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._before[signal.Signals(number)])
        if os.getpid() != self._process:
            return  # a loading process, which inherits this and gets the terminal's Ctrl-C too
        self.asked = True
        self.say("Stopping after this step ... (Ctrl-C again: at once, without saving)")
