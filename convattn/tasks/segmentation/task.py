"""Semantic segmentation as a task of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import Metric

from convattn.data import (
    IGNORED,
    Batch,
    DataSource,
    ImageSet,
    JointAugment,
    Preprocess,
    stack_masks,
)
from convattn.models.dense import DenseModel
from convattn.runs.card import ModelCard
from convattn.runs.metrics import Column
from convattn.runs.segmentations import SegmentationPrediction
from convattn.tasks.segmentation import build
from convattn.tasks.segmentation.config import SegmentationConfig
from convattn.tasks.segmentation.counts import SegmentationMeter, count_pixels
from convattn.tasks.segmentation.evaluation import SegmentationEvaluation, summarise
from convattn.tasks.segmentation.models import Inference, Segmenter, build_segmenter, segment
from convattn.tasks.segmentation.report import NUMBERS, PARTS
from convattn.training.dense import DenseTask
from convattn.training.evaluation import Found
from convattn.training.task import Step


class Segmentation(DenseTask[SegmentationConfig]):
    """A class per pixel: targets and outputs are masks of class numbers, at the original size."""

    name = "segmentation"
    config_class = SegmentationConfig
    prediction_class = SegmentationPrediction
    best = ("val_miou", "val_acc")
    report = PARTS
    report_numbers = NUMBERS
    build_method = staticmethod(build_segmenter)
    fixed = (
        "method", "classes", "ignored", "in_chans", "img_size", "crop", "short_side", "long_side",
        "channels", "head_channels", "pool_scales", "auxiliary", "norm_maps", "ignored_classes",
    )  # fmt: skip

    @classmethod
    def columns(cls, method: str) -> tuple[Column, ...]:
        """Return the loss with that of an auxiliary head, mean IoU and accuracies."""
        return (
            Column("train_loss", "loss", "loss", 8),
            Column("val_miou", "mean IoU", "share", 9),
            Column("val_acc", "pixel acc", "share", 10),
            Column("val_macc", "class acc", "share", 10),
        )

    def model_settings(self) -> dict[str, Any]:
        """Return the arguments of the segmenter that the configuration sets."""
        return build.model_settings(self.config, self.source)

    def preprocess(self, model: DenseModel, in_chans: int) -> Preprocess:
        """Return the input: crops in training, images of a shorter side in evaluation."""
        return build.preprocess(model, self.config, in_chans)

    def augmentation(self) -> JointAugment:
        """Return the augmentation of training images: resize, crop, flip, colours."""
        return build.augmentation(self.config, self.source)

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> Step:
        """Compute the cross-entropy of the head, and that of the auxiliary head."""
        images = batch["image"]
        targets = stack_masks(batch["target"], images.shape[2:])
        return Step(model(images, targets.to(images.device)))

    def train_forward(self, model: nn.Module, images: Tensor) -> None:
        """Compute the losses of blank images of the first class."""
        model(images, images.new_zeros(len(images), *images.shape[2:]).long())

    @classmethod
    def outputs(  # type: ignore[override]  # named options
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        *,
        inference: Literal["whole", "slide"] | None = None,
        window: int | None = None,
        window_stride: int | None = None,
        flip: bool | None = None,
    ) -> list[Tensor]:
        """Return masks of class numbers, uint8 (H, W), at the sizes of the original images.

        Args:
            model: see `Task.outputs`.
            images: see `Task.outputs`.
            sizes: see `Task.outputs`.
            card: see `Task.outputs`.
            inference: "whole" or "slide"; by default, as all options, that of the training.
            window: slide: height and width of a window, a multiple of 32.
            window_stride: slide: distance of two windows.
            flip: whether to average with the result of the mirrored image.

        Raises:
            ValueError: an option is out of range, or is for windows where there are none.
        """
        given = {"mode": inference, "window": window, "stride": window_stride, "flip": flip}
        changes: dict[str, Any] = {key: v for key, v in given.items() if v is not None}
        if "window" in changes:
            changes.setdefault("stride", None)
        how = replace(inference_of(model), **changes)
        if how.mode != "slide" and (window, window_stride) != (None, None):
            name = "window_stride" if window is None else "window"
            raise ValueError(f"{name} has no effect on whole images: set inference=slide too")
        resized = [card.preprocess.resized(size) for size in sizes]
        originals = [(height, width) for width, height in sizes]
        return segment(model, images, resized, originals, how)

    @classmethod
    def kept(cls, outputs: list[Tensor], targets: Any) -> tuple[list[Tensor], list[None]]:
        """Return the counts of pixels by true and predicted class of each image."""
        counts = [count_pixels(mask, target) for mask, target in zip(outputs, targets, strict=True)]
        return counts, [None] * len(counts)

    @classmethod
    def predict(
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        **options: Any,
    ) -> list[SegmentationPrediction]:
        """Return the class of each pixel of each image; options and errors of `outputs`."""
        masks = cls.outputs(model, images, sizes, card, **options)
        return [_prediction(mask, size, card) for mask, size in zip(masks, sizes, strict=True)]

    def meter(self, card: ModelCard) -> Metric:
        """Return mean IoU, pixel accuracy and mean accuracy of the classes."""
        return SegmentationMeter(len(card.class_names), ignored_of(card))

    @classmethod
    def summarise(
        cls, card: ModelCard, data: DataSource, images: ImageSet, found: Found
    ) -> SegmentationEvaluation:
        """Return the metrics of all images, of each class and of each image."""
        return summarise(card, data, images, found, ignored_of(card))


def ignored_of(card: ModelCard) -> tuple[int, ...]:
    """Return the numbers of the classes that do not count."""
    return tuple(card.model_args.get("ignored", ()))


def inference_of(model: nn.Module) -> Inference:
    """Return how a segmenter is used on images."""
    assert isinstance(model, Segmenter)
    return model.inference


def _prediction(mask: Tensor, size: tuple[int, int], card: ModelCard) -> SegmentationPrediction:
    if (mask == IGNORED).any():
        return SegmentationPrediction.of_nan(size)
    return SegmentationPrediction(
        path="", size=size, class_names=card.class_names, mask=mask.cpu().numpy()
    )
