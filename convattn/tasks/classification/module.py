"""The training and validation step of a classifier, for Lightning."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from convattn.data import READABLE, Batch
from convattn.tasks.classification.config import TrainConfig
from convattn.tasks.classification.datamodule import ClassificationData
from convattn.tasks.classification.optimizer import build_optimizer, build_schedule, rate_factor

LossFunction = Callable[[Tensor, Tensor], Tensor]


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


class Classifier(pl.LightningModule):
    """A timm model with its loss, optimiser, schedule, metrics and average of weights.

    Everything random in a step is seeded from the configuration's seed and the step's number, so
    that a resumed training draws what the uninterrupted one would have drawn.

    Args:
        model: the network, images (B, C, H, W) to scores (B, classes).
        config: the run's settings.
        data: the batches; it knows the number of classes and of updates.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, data: ClassificationData) -> None:
        super().__init__()
        num_classes = data.source.num_classes
        self.model = model
        self.config = config
        self.data = data
        self.ema = _build_ema(model, config)
        self.mixup = _build_mixup(config, num_classes)
        self.loss = _build_loss(config)
        self.train_loss = MeanMetric(nan_strategy="disable")  # checked once in a while below
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.val_top5 = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes))
        for metric in (self.train_loss, self.train_acc):
            metric.persistent(True)  # an epoch that is resumed half-way goes on counting
        self._seen = 0
        self._first_batch = 0.0
        self._seconds = 0.0

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed this step, and end mixup where the configuration says so."""
        if self.mixup is not None and self.config.mixup_off_epoch:
            self.mixup.mixup_enabled = self.current_epoch < self.config.mixup_off_epoch
        if not self._seen:
            self._first_batch = time.perf_counter()
        seed = hash((self.config.seed, self.current_epoch, batch_idx, self.global_rank)) % 2**31
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = self._images(batch), batch["target"]
        target = labels
        if self.mixup is not None:
            images, target = self.mixup(images, labels)
        scores = self.model(images)
        loss = self.loss(scores, target)
        self.train_loss.update(loss.detach())
        # Of mixed images the class with the larger share counts.
        self.train_acc.update(scores.detach(), labels if target is labels else target.argmax(-1))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, and then their average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # Lightning counts afterwards

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop when the loss is not a number."""
        self._seen += len(batch["target"]) * self.trainer.world_size
        self._seconds = time.perf_counter() - self._first_batch
        if batch_idx % 10 == 0 or self.trainer.is_last_batch:
            self._check_finite(outputs["loss"], batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch of held-out images."""
        scores = self.evaluated(self._images(batch)).float()
        readable = batch["status"] == READABLE
        scores, labels = scores[readable], batch["target"][readable]
        if len(labels):
            self.val_loss.update(F.cross_entropy(scores, labels), weight=len(labels))
            self.val_top1.update(scores, labels)
            self.val_top5.update(scores, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch: it ends with validation, so that what training found is complete too."""
        self._log_and_reset("val_loss", "val_top1", "val_top5")
        if not self.trainer.sanity_checking:
            self._log_and_reset("train_loss", "train_acc")
            self.log("lr", self.learning_rate)
            self.log("images_per_second", self._seen / max(self._seconds, 1e-9))
            self._seen = 0

    def _log_and_reset(self, *names: str) -> None:
        for name in names:
            metric = getattr(self, name)
            self.log(name, metric.compute())
            metric.reset()

    @property
    def learning_rate(self) -> float:
        """The largest learning rate in use."""
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the schedule."""
        factor = rate_factor(self.config, self.data.images_per_update)
        optimizer = build_optimizer(self.config, self.model, factor)
        schedule = build_schedule(self.config, optimizer, self.data.updates_per_epoch, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the schedule from the configuration, which may have got more epochs since.

        It is a function of the number of updates, so that it has no state of its own to restore.
        """
        checkpoint["lr_schedulers"] = [{} for _ in checkpoint["lr_schedulers"]]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step timm's schedule, which wants the number of updates."""
        scheduler.step_update(num_updates=self.global_step)

    def _images(self, batch: Batch) -> Tensor:
        images = batch["image"]
        if self.config.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _check_finite(self, loss: Tensor, batch_idx: int) -> None:
        if not loss.isfinite():
            raise TrainingDivergedError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}, batch "
                f"{batch_idx + 1}, at a learning rate of {self.learning_rate:.2g}. Try a lower lr "
                f"(lr={self.config.lr / 4:.2g}), clip_grad=1, a longer warm-up, or precision=32"
            )


def _build_ema(model: nn.Module, config: TrainConfig) -> ModelEmaV3 | None:
    if not config.ema:
        return None
    average = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
    average.requires_grad_(False)
    return average


def _build_mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )


def _build_loss(config: TrainConfig) -> LossFunction:
    if config.loss == "bce":
        smoothing = 0.0 if config.mixup or config.cutmix else config.smoothing
        return BinaryCrossEntropy(smoothing=smoothing)
    if config.mixup or config.cutmix:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.smoothing)
