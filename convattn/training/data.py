"""The batches of a training run, for Lightning."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from convattn.data import (
    BROKEN,
    Batch,
    BrokenFile,
    DataSource,
    Preprocess,
    check_share,
    default_workers,
    eval_loader,
    reread,
    train_loader,
)
from convattn.training.task import Task


class TaskData(pl.LightningDataModule):
    """Training and validation batches of a task's data.

    Args:
        task: its data, settings, transforms and collation.
        preprocess: what the model expects.
        epoch: the epoch at which the training starts.
        batches_done: batches of that epoch that are already trained.
    """

    def __init__(
        self, task: Task[Any], preprocess: Preprocess, *, epoch: int = 0, batches_done: int = 0
    ) -> None:
        super().__init__()
        self.task = task
        self.epoch = epoch
        self.batches_done = batches_done
        self.broken: set[int] = set()
        # Made before anything is written, so that a policy unknown to timm is an error by then.
        self._train_transform = task.train_transform(preprocess)
        self._eval_transform = task.eval_transform(preprocess)

    @property
    def source(self) -> DataSource:
        """The data set."""
        return self.task.source

    @property
    def batch_size(self) -> int:
        """Images per batch and device: at most those there are, a multiple of the task's."""
        size = min(self.task.config.batch_size, len(self.source.train) // self._world_size)
        multiple = self.task.batch_multiple
        return size - size % multiple if size > multiple else size

    @property
    def images_per_update(self) -> int:
        """Images that all devices together see between two updates of the weights."""
        return self.batch_size * self._world_size * self.task.config.accumulate

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, on each device."""
        return len(self.source.train) // self._world_size // self.batch_size

    @property
    def updates_per_epoch(self) -> int:
        """Updates of the weights in an epoch."""
        return math.ceil(self.batches_per_epoch / self.task.config.accumulate)

    @property
    def workers(self) -> int:
        """Loading processes per loader."""
        workers = self.task.config.workers
        return default_workers(self.source.train) if workers is None else workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, from the first that is not trained yet."""
        return train_loader(
            self.source.train,
            self._train_transform,
            batch_size=self.batch_size,
            workers=self.workers,
            pin_memory=self._pin_memory,
            low_priority=self._device == "cpu",
            collate=self.task.collate,
            seed=self.task.config.seed,
            repeats=self.task.repeats,
            rank=self._rank,
            world_size=self._world_size,
            epoch=self.epoch,
            batches_done=self.batches_done,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the held-out images."""
        return eval_loader(
            self.source.val,
            self._eval_transform,
            batch_size=self.task.config.batch_size,
            workers=self.workers,
            pin_memory=self._pin_memory,
            low_priority=self._device == "cpu",
            collate=self.task.collate,
            rank=self._rank,
            world_size=self._world_size,
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note the training images that could not be read; too many of them end the training."""
        if self.trainer is not None and self.trainer.training:
            broken = batch["index"][batch["status"] == BROKEN]
            if len(broken):
                self.broken.update(broken.tolist())
                total = len(self.source.train)
                limit = self.task.config.max_broken
                check_share(self.broken_files(), total, limit, self.source.name)
        return batch

    def broken_files(self) -> list[BrokenFile]:
        """Return the training images that could not be read."""
        return reread(self.source.train, sorted(self.broken))

    @property
    def _device(self) -> str:
        return self.trainer.strategy.root_device.type if self.trainer else ""

    @property
    def _pin_memory(self) -> bool:
        return self._device == "cuda" and torch.cuda.is_available()

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1
