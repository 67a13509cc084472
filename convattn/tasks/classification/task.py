"""Image classification as a task of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from convattn.checks import check_positive
from convattn.data import (
    Augment,
    Batch,
    DataSource,
    ImageOnly,
    ImageSet,
    Preprocess,
    Transform,
    eval_transform,
    train_transform,
)
from convattn.models import create_model
from convattn.runs.card import ModelCard
from convattn.runs.metrics import Column
from convattn.runs.predictions import ClassPrediction, Guess
from convattn.tasks.classification.build import build_model
from convattn.tasks.classification.config import TrainConfig
from convattn.tasks.classification.evaluation import Evaluation, summarise
from convattn.tasks.classification.report import PARTS
from convattn.tasks.classification.shapes import shape_notes
from convattn.training.evaluation import Found
from convattn.training.task import Built, Step, Task

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Classification(Task[TrainConfig]):
    """Image classification with a timm model: targets are class numbers, outputs are scores."""

    name = "classification"
    config_class = TrainConfig
    prediction_class = ClassPrediction
    best = ("val_top1", "-val_loss")
    fixed = ("in_chans", "img_size", "repeats")
    report = PARTS

    @classmethod
    def columns(cls, method: str = "") -> tuple[Column, ...]:
        """Return losses and accuracies of training and validation."""
        return (
            Column("train_loss", "loss", "loss", 8),
            Column("train_acc", "acc", "share", 7),
            Column("val_loss", "val loss", "loss", 8),
            Column("val_top1", "top-1", "share", 7),
            Column("val_top5", "top-5", "share", 7),
        )

    @property
    def batch_multiple(self) -> int:
        """Two with mixup or CutMix, which mix pairs of images."""
        return 2 if self.config.mixup or self.config.cutmix else 1

    @property
    def repeats(self) -> int:
        """Number of copies of an image in an epoch, each with other random augmentations."""
        return self.config.repeats

    def build(self) -> Built:
        """Build the model with its initial weights."""
        model, card, notes = build_model(self.config, self.source)
        shapes = shape_notes(card.preprocess, self.source.typical_size)
        return Built(model, card, tuple(notes), tuple(shapes))

    def train_transform(self, preprocess: Preprocess) -> Transform:
        """Return timm's random transform of training images."""
        return ImageOnly(train_transform(preprocess, augmentation(self.config, self.source)))

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> Step:
        """Compute loss and accuracy; a mixed image counts as the class of its larger part."""
        images, labels = batch["image"], batch["target"]
        target = labels
        if self.mixup is not None:
            if 0 < self.config.mixup_off_epoch <= epoch:
                self.mixup.mixup_enabled = False
            images, target = self.mixup(images, labels)
        scores = model(images)
        classes = labels if target is labels else target.argmax(-1)
        right = (scores.detach().argmax(-1) == classes).float().mean()
        return Step({"loss": self.loss(scores, target)}, {"acc": right})

    @cached_property
    def loss(self) -> LossFunction:
        """The loss function of the configuration."""
        return _loss(self.config)

    @cached_property
    def mixup(self) -> Mixup | None:
        """Mixup and CutMix of the configuration; None if it has neither."""
        return _mixup(self.config, self.source.num_classes)

    @classmethod
    def rebuild(cls, card: ModelCard) -> nn.Module:
        """Return the model that a card describes, without trained weights."""
        return create_model(
            card.model,
            num_classes=len(card.class_names),
            in_chans=card.preprocess.input_size[0],
            **card.model_args,
        )

    @classmethod
    def eval_transform(cls, preprocess: Preprocess) -> Transform:
        """Return timm's transform of evaluation: resize, crop, normalise."""
        return ImageOnly(eval_transform(preprocess))

    @classmethod
    def outputs(  # type: ignore[override]  # no options
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
    ) -> Tensor:
        """Return scores (B, classes) in float32."""
        scores: Tensor = model(images)
        return scores.float()

    @classmethod
    def predict(  # type: ignore[override]  # named options
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        *,
        top_k: int = 5,
    ) -> list[ClassPrediction]:
        """Return the ``top_k`` most probable classes of each image, or all classes if fewer."""
        check_positive("top_k", top_k)
        probabilities = cls.outputs(model, images, sizes, card).softmax(-1)
        best = probabilities.topk(min(top_k, len(card.class_names)))
        rows = zip(sizes, best.values.tolist(), best.indices.tolist(), strict=True)
        return [_prediction(size, values, numbers, card) for size, values, numbers in rows]

    def meter(self, card: ModelCard) -> Metric:
        """Return cross-entropy, top-1 and top-5 accuracy."""
        return ClassificationMeter(len(card.class_names))

    @classmethod
    def summarise(
        cls, card: ModelCard, data: DataSource, images: ImageSet, found: Found
    ) -> Evaluation:
        """Return accuracies, confusion matrix and predictions."""
        return summarise(card, data, images, found)


class ClassificationMeter(Metric):
    """Cross-entropy, top-1 and top-5 accuracy over the images of all processes.

    Args:
        num_classes: number of classes; with fewer than five, top-5 counts all of them.
    """

    full_state_update = False
    loss: Tensor
    top1: Tensor
    top5: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top = min(5, num_classes)
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")  # GPUs of Apple: no float64
        for name in ("top1", "top5", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add images: scores (B, classes), labels (B,)."""
        hits = scores.topk(self.top).indices == labels[:, None]
        self.loss += F.cross_entropy(scores, labels, reduction="sum")
        self.top1 += hits[:, 0].sum()
        self.top5 += hits.sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the means."""
        return {name: getattr(self, name) / self.count for name in ("loss", "top1", "top5")}


def _prediction(
    size: tuple[int, int], values: list[float], numbers: list[int], card: ModelCard
) -> ClassPrediction:
    if not all(map(math.isfinite, values)):
        return ClassPrediction.of_nan(size)
    pairs = zip(numbers, values, strict=True)
    guesses = tuple(Guess(card.class_names[number], value) for number, value in pairs)
    return ClassPrediction(path="", size=size, guesses=guesses)


def augmentation(config: TrainConfig, source: DataSource) -> Augment:
    """Return the augmentation of training images; a horizontal flip only if the data allows it."""
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


def _mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
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


def _loss(config: TrainConfig) -> LossFunction:
    if config.loss == "bce":
        smoothing = 0.0 if config.mixup or config.cutmix else config.smoothing
        return BinaryCrossEntropy(smoothing=smoothing)
    if config.mixup or config.cutmix:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.smoothing)
