"""The batches of a training run, for Lightning."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from convattn.data import (
    BROKEN,
    Augment,
    Batch,
    BrokenFile,
    DataSource,
    ImageOnly,
    Preprocess,
    check_share,
    default_workers,
    eval_loader,
    eval_transform,
    reread,
    train_loader,
    train_transform,
)
from convattn.tasks.classification.config import TrainConfig


class ClassificationData(pl.LightningDataModule):
    """Training and validation batches of a data source.

    Args:
        source: the data.
        config: batch size, augmentation, workers.
        preprocess: what the model expects.
        epoch: the epoch that the training goes on with.
        batches_done: batches of that epoch that it has already seen.
    """

    def __init__(
        self,
        source: DataSource,
        config: TrainConfig,
        preprocess: Preprocess,
        *,
        epoch: int = 0,
        batches_done: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.config = config
        self.preprocess = preprocess
        self.epoch = epoch
        self.batches_done = batches_done
        self.broken: set[int] = set()
        # Made at once, so that a policy that timm does not have is told before anything is written.
        self._vary = ImageOnly(train_transform(preprocess, augmentation(config, source)))

    @property
    def batch_size(self) -> int:
        """Images per batch and device: no more than there are, and an even number for mixup."""
        size = min(self.config.batch_size, len(self.source.train) // self._world_size)
        return size - size % 2 if (self.config.mixup or self.config.cutmix) and size > 1 else size

    @property
    def images_per_update(self) -> int:
        """Images that all devices together see between two updates of the weights."""
        return self.batch_size * self._world_size * self.config.accumulate

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, on each device."""
        return len(self.source.train) // self._world_size // self.batch_size

    @property
    def updates_per_epoch(self) -> int:
        """Updates of the weights in an epoch."""
        return math.ceil(self.batches_per_epoch / self.config.accumulate)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, from where the training stands."""
        return train_loader(
            self.source.train,
            self._vary,
            batch_size=self.batch_size,
            workers=self._workers,
            pin_memory=self._pin_memory,
            seed=self.config.seed,
            repeats=self.config.repeats,
            rank=self._rank,
            world_size=self._world_size,
            epoch=self.epoch,
            batches_done=self.batches_done,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the held-out images."""
        return eval_loader(
            self.source.val,
            ImageOnly(eval_transform(self.preprocess)),
            batch_size=self.config.batch_size,
            workers=self._workers,
            pin_memory=self._pin_memory,
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
                check_share(self.broken_files(), total, self.config.max_broken, self.source.name)
        return batch

    def broken_files(self) -> list[BrokenFile]:
        """Return the training images that could not be read."""
        return reread(self.source.train, sorted(self.broken))

    @property
    def _workers(self) -> int:
        workers = self.config.workers
        return default_workers(self.source.train) if workers is None else workers

    @property
    def _pin_memory(self) -> bool:
        return torch.cuda.is_available()

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def augmentation(config: TrainConfig, source: DataSource) -> Augment:
    """Return how the training images are varied: the configuration, where the data allows it."""
    return Augment(
        scale=config.scale,
        ratio=config.ratio,
        hflip=(0.5 if source.hflip else 0.0) if config.hflip is None else config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        erasing=config.erasing,
        degrees=config.degrees,
        translate=config.translate,
        zoom=config.zoom,
        shear=config.shear,
        background=source.background,
    )
