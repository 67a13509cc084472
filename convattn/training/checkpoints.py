"""Callbacks that write the checkpoints and the metrics of a training run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.folder import RunFolder
from convattn.runs.metrics import Column, score
from convattn.runs.weights import read_ckpt, save_weights, write_ckpt
from convattn.training.module import TaskModule

_AGREE_EVERY = 20  # updates between two joint decisions of several processes

_BETWEEN_PROCESSES = ".temp.ckpt"  # with it Lightning passes weights to the parent process


class WholeFiles(CheckpointIO):
    """Write Lightning's checkpoints atomically and with checksums, and check them when read."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the file appears whole or not at all."""
        write_ckpt(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        if Path(path).name == _BETWEEN_PROCESSES:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        return read_ckpt(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class KeepCheckpoints(Checkpoint):
    """Save the last and the best epoch, each as a .ckpt and a .safetensors file.

    The .ckpt file has all that a resumed training needs; the .safetensors file has the weights
    that were validated and a `ModelCard`. ``last.ckpt`` is also written within an epoch.

    Args:
        run: the folder of the run.
        card: the model card, without epoch and metrics.
        columns: the metrics of an epoch.
        rule: for the best epoch, see `score`.
        epochs_done: number of epochs that earlier starts of the run finished.
        minutes: time between two checkpoints within an epoch; 0 disables them.
    """

    def __init__(
        self,
        run: RunFolder,
        card: ModelCard,
        columns: tuple[Column, ...],
        rule: tuple[str, ...],
        *,
        epochs_done: int = 0,
        minutes: float = 10.0,
    ) -> None:
        self.run = run
        self.card = card
        self.columns = columns
        self.rule = rule
        self.best: tuple[float, ...] = ()
        self.best_epoch = 0
        self.epochs_done = epochs_done
        self.batches_done = 0  # of the epoch after them
        self._seconds = 60 * minutes or math.inf
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after validation."""
        self.epochs_done, self.batches_done = trainer.current_epoch + 1, 0
        found = epoch_metrics(trainer, self.columns)
        self.card = replace(self.card, epoch=self.epochs_done, metrics=found)
        is_best = not self.best or score(found, self.rule) > self.best
        if is_best:
            self.best, self.best_epoch = score(found, self.rule), self.epochs_done
        # last.ckpt is written last: a run that is killed earlier repeats the epoch and its files.
        with _explaining(self.run):
            for name in ("best", "last") if is_best else ("last",):
                if trainer.is_global_zero:
                    assert isinstance(pl_module, TaskModule)
                    weights = pl_module.evaluated.state_dict()
                    save_weights(weights, self.card, self.run.checkpoints / f"{name}.safetensors")
                trainer.save_checkpoint(self.run.checkpoints / f"{name}.ckpt")
        self._written = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch if the last checkpoint is older than ``minutes``."""
        done = batch_idx + 1
        if done == trainer.num_training_batches or done % trainer.accumulate_grad_batches:
            return
        if not is_decided(trainer, done):
            return
        due = time.monotonic() - self._written >= self._seconds
        if trainer.world_size > 1:
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            self.save_now(trainer, done)

    def save_now(self, trainer: pl.Trainer, batches_done: int) -> None:
        """Save within an epoch, so that a resumed training continues after this batch.

        Weights that are NaN or infinite are not saved: the earlier checkpoint remains.
        """
        if not _all_finite(trainer.lightning_module):
            return
        self.epochs_done, self.batches_done = trainer.current_epoch, batches_done
        with _explaining(self.run):
            trainer.save_checkpoint(self.run.last)
        self._written = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the card and the progress of the training."""
        checkpoint["convattn"] = {
            "card": self.card.to_json(),
            "epochs_done": self.epochs_done,
            "batches_done": self.batches_done,
            "best_epoch": self.best_epoch,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the score and the number of the best epoch."""
        return {"best": list(self.best), "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score and the number of the best epoch if its files exist."""
        if self.run.has_best:
            self.best = tuple(state_dict["best"])
            self.best_epoch = state_dict["best_epoch"]


class WriteMetrics(Callback):
    """Add a row to ``metrics.csv`` after every epoch.

    Args:
        run: the folder of the run.
        columns: the metrics of an epoch.
        say: prints a sentence, such as a note on a damaged table.
    """

    def __init__(
        self, run: RunFolder, columns: tuple[Column, ...], say: Callable[[str], None]
    ) -> None:
        self.run = run
        self.columns = columns
        self.say = say

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row."""
        if trainer.is_global_zero:
            row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            names = tuple(column.name for column in self.columns)
            with _explaining(self.run):
                notes = self.run.add_metrics(names, row | epoch_metrics(trainer, self.columns))
            for note in notes:
                self.say(note)


def epoch_metrics(trainer: pl.Trainer, columns: tuple[Column, ...]) -> dict[str, float]:
    """Return the logged metrics of the epoch, by the names of their columns."""
    logged = trainer.callback_metrics
    return {c.name: float(logged[c.name]) for c in columns if c.name in logged}


@contextmanager
def _explaining(run: RunFolder) -> Iterator[None]:
    """Add to an `OSError` which checkpoint remains, and how to continue the run."""
    try:
        yield
    except OSError as error:
        reason = f"{shown(error.filename)}: {error.strerror}" if error.filename else str(error)
        raise OSError(
            f"cannot write {reason.removeprefix('cannot write ')}. The last whole checkpoint "
            "remains: free disk space or correct the cause, then continue with convattn train "
            f"--resume {shown(run.path)}"
        ) from error


def is_decided(trainer: pl.Trainer, done: int) -> bool:
    """Return whether the processes decide jointly after this batch, which ends an update."""
    updates = done // trainer.accumulate_grad_batches
    return trainer.world_size == 1 or updates % _AGREE_EVERY == 0


def _all_finite(module: pl.LightningModule) -> bool:
    weights = [p for p in module.parameters() if p.is_floating_point()]
    return all(bool(torch.isfinite(p).all()) for p in weights)
