"""The training and validation batches of a run, as a data module of Lightning."""

from __future__ import annotations

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
from convattn.training.optimizer import Plan
from convattn.training.task import Task


class TaskData(pl.LightningDataModule):
    """Training and validation batches of a task's data.

    Args:
        task: has the data, settings, transforms and the collate function.
        preprocess: the input that the model expects.
        epoch: the first epoch, from 0.
        batches_done: number of batches of the first epoch that were trained earlier.
    """

    def __init__(
        self, task: Task[Any], preprocess: Preprocess, *, epoch: int = 0, batches_done: int = 0
    ) -> None:
        super().__init__()
        self.task = task
        self.epoch = epoch
        self.batches_done = batches_done
        self.broken: set[int] = set()
        # Built before the run folder is created: an unknown auto_augment policy raises an error.
        self._train_transform = task.train_transform(preprocess)
        self._eval_transform = task.eval_transform(preprocess)

    @property
    def source(self) -> DataSource:
        """The data set."""
        return self.task.source

    @property
    def batch_size(self) -> int:
        """Images per batch and device: at most all images, and a multiple of `batch_multiple`."""
        size = min(self.task.config.batch_size, len(self.source.train) // self._world_size)
        multiple = self.task.batch_multiple
        return size - size % multiple if size > multiple else size

    @property
    def images_per_update(self) -> int:
        """Images on all devices between two updates of the weights."""
        return self.batch_size * self._world_size * self.task.config.accumulate

    @property
    def plan(self) -> Plan:
        """Number of epochs, and of batches and updates in each."""
        batches = len(self.source.train) // self._world_size // self.batch_size
        return Plan.of(self.task.config, batches)

    @property
    def workers(self) -> int:
        """Number of loading processes for training; validation has as many."""
        workers = self.task.config.workers
        return default_workers(self.source.train) if workers is None else workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, without those that were trained earlier."""
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
        """Return the batches of validation images."""
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
        """Record the training images that cannot be read.

        Raises:
            ValueError: their share is greater than ``max_broken``.
        """
        if self.trainer is not None and self.trainer.training:
            broken = batch["index"][batch["status"] == BROKEN]
            if len(broken):
                self.broken.update(broken.tolist())
                total = len(self.source.train)
                limit = self.task.config.max_broken
                check_share(self.broken_files(), total, limit, self.source.name)
        return batch

    def broken_files(self) -> list[BrokenFile]:
        """Return the training images that cannot be read, with the reasons."""
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
