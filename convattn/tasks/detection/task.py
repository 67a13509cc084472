"""Object detection and instance segmentation as a task of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.ops import batched_nms

from convattn.checks import check_rate
from convattn.data import (
    Batch,
    DataSource,
    ImageSet,
    JointAugment,
    Preprocess,
    padded_groups,
)
from convattn.models.dense import DenseModel
from convattn.runs.card import ModelCard
from convattn.runs.detections import SHOWN_SCORE, DetectionPrediction, FoundObject
from convattn.runs.metrics import Column
from convattn.runs.rle import Rle
from convattn.tasks.detection import build
from convattn.tasks.detection.config import MASK_METHODS, MODEL_SETTINGS, DetectionConfig
from convattn.tasks.detection.evaluation import DetectionEvaluation, summarise
from convattn.tasks.detection.meter import DetectionMeter
from convattn.tasks.detection.models import build_detector, method_arguments
from convattn.tasks.detection.objects import Found, found_objects, kept_found, kept_target
from convattn.tasks.detection.report import NUMBERS, PARTS
from convattn.training.dense import DenseTask, chosen_settings
from convattn.training.evaluation import Found as Outputs
from convattn.training.task import Step

_LOSSES = ("cls", "box")  # of the heads, in the order of the columns
_OF_PROPOSALS = ("rpn_cls", "rpn_box")


class Detection(DenseTask[DetectionConfig]):
    """Detection with any of the methods: targets are objects, outputs are found objects."""

    name = "detection"
    config_class = DetectionConfig
    prediction_class = DetectionPrediction
    best = ("val_map",)
    report = PARTS
    report_numbers = NUMBERS
    build_method = staticmethod(build_detector)
    fixed = (
        "method", "json", "images", "in_chans", "img_size", "short_side", "long_side", "channels",
        "norm_maps", "head_depth", "head_width", "box_head", "anchor_scale",
    )  # fmt: skip

    @classmethod
    def columns(cls, method: str) -> tuple[Column, ...]:
        """Return the losses of a method and its average precisions."""
        parts = [Column(f"train_{part}", part, "loss", 7) for part in _parts(method)]
        masks = (
            Column("val_mask_map", "mask AP", "share"),
            Column("val_mask_map50", "mask AP50", "share", 9),
        )
        return (
            Column("train_loss", "loss", "loss"),
            *parts,
            Column("val_map", "AP", "share", 7),
            Column("val_map50", "AP50", "share", 7),
            *(masks if method in MASK_METHODS else ()),
        )

    def model_settings(self) -> dict[str, Any]:
        """Return the arguments of the detector that the configuration sets."""
        build.check_sizes(self.config)
        known = method_arguments(self.method)
        return chosen_settings(self.config, MODEL_SETTINGS, known)

    def preprocess(self, model: DenseModel, in_chans: int) -> Preprocess:
        """Return the input: a square of ``img_size``, or images of a length of the shorter side."""
        return build.preprocess(model, self.config, in_chans)

    def augmentation(self) -> JointAugment:
        """Return the augmentation of training images."""
        return build.augmentation(self.config, self.source)

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> Step:
        """Compute the losses of a batch; those of the stages of a cascade are added."""
        targets = batch["target"]
        sizes = [target["boxes"].canvas_size for target in targets]
        found: dict[str, Tensor] = model(batch["image"], targets, sizes)
        return Step({part: _sum(found, part) for part in _parts(self.method)})

    def train_forward(self, model: nn.Module, images: Tensor) -> None:
        """Compute the losses of images with one object each."""
        height, width = images.shape[-2:]
        target = {
            "boxes": torch.tensor([[0.0, 0.0, width / 2, height / 2]]),
            "labels": torch.zeros(1, dtype=torch.int64),
            "masks": torch.ones(1, height, width, dtype=torch.uint8),
        }
        model(images, [target] * len(images))

    @classmethod
    def outputs(  # type: ignore[override]  # named options
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        *,
        score: float | None = None,
        nms: float | None = None,
    ) -> list[Found]:
        """Return the objects found in each image, in pixels of the original image.

        Args:
            model: see `Task.outputs`.
            images: see `Task.outputs`.
            sizes: see `Task.outputs`.
            card: see `Task.outputs`.
            score: objects with a lower score are left out; at least that of the training.
            nms: of two objects of a class whose IoU is higher, the one with the lower score is left
                out; at most that of the training.

        Raises:
            ValueError: ``score`` or ``nms`` is out of range.
        """
        _check_limits(model, score, nms)
        resized = [card.preprocess.resized(size) for size in sizes]
        found: dict[int, Found] = {}
        for numbers, group in padded_groups(images, resized):
            inner = [resized[number] for number in numbers]
            for number, objects in zip(numbers, model(group, sizes=inner), strict=True):
                found[number] = found_objects(objects, resized[number], sizes[number])
        return [_limited(found[number], score, nms) for number in range(len(sizes))]

    @classmethod
    def kept(cls, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Return the objects on the CPU, their masks as run lengths."""
        return [kept_found(found) for found in outputs], [kept_target(t) for t in targets]

    @classmethod
    def predict(
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        **options: Any,
    ) -> list[DetectionPrediction]:
        """Return the objects of each image; options and errors of `outputs`."""
        score = options.get("score")
        shown = SHOWN_SCORE if score is None else score
        return [
            replace(_prediction(found, card), shown_score=shown)
            if found["scores"].isfinite().all()
            else DetectionPrediction.of_nan(found["size"])
            for found in cls.outputs(model, images, sizes, card, **options)
        ]

    def meter(self, card: ModelCard) -> Metric:
        """Return the average precision of boxes and masks."""
        return DetectionMeter(masks=card.method in MASK_METHODS, backend=self.config.backend)

    @classmethod
    def summarise(
        cls, card: ModelCard, data: DataSource, images: ImageSet, found: Outputs
    ) -> DetectionEvaluation:
        """Return average precisions, curves, confusions and the found objects."""
        return summarise(card, data, images, found)


def _parts(method: str) -> tuple[str, ...]:
    """Return the names of the losses of a method."""
    proposals = () if method == "retinanet" else _OF_PROPOSALS
    masks = ("mask",) if method in MASK_METHODS else ()
    return (*proposals, *_LOSSES, *masks)


def _sum(losses: dict[str, Tensor], part: str) -> Tensor:
    """Return a loss, or the sum of it over the stages of a cascade: cls_1, cls_2, cls_3."""
    stages = [
        loss
        for name, loss in losses.items()
        if name == part or name.rstrip("0123456789") == f"{part}_"
    ]
    first, *others = stages
    return sum(others, first)


def _check_limits(model: Any, score: float | None, nms: float | None) -> None:
    if score is not None:
        check_rate("score", score)
        if score < model.score:
            raise ValueError(
                f"score={score:g} is less than that of the training, score={model.score:g}, below "
                "which the model finds no objects"
            )
    if nms is not None and not 0 < nms <= model.nms:
        raise ValueError(
            f"nms={nms:g} must be above 0 and at most that of the training, nms={model.nms:g}"
        )


def _limited(found: Found, score: float | None, nms: float | None) -> Found:
    """Return the objects with a score of at least ``score`` that ``nms`` does not leave out.

    The objects of an image for which the model computed NaN stay as they are.
    """
    if (score, nms) == (None, None) or not found["scores"].isfinite().all():
        return found
    keep = torch.arange(len(found["scores"]), device=found["scores"].device)
    if nms is not None:
        keep = batched_nms(found["boxes"], found["scores"], found["labels"], nms)
    if score is not None:
        keep = keep[found["scores"][keep] >= score]
    chosen = {k: v[keep] for k, v in found.items() if isinstance(v, Tensor)}
    return Found(**{**found, **chosen})  # type: ignore[typeddict-item]


def _prediction(found: Found, card: ModelCard) -> DetectionPrediction:
    kept = kept_found(found)
    masks: Sequence[Rle | None] = kept["masks"] or [None] * len(kept["labels"])
    rows = zip(
        kept["labels"].tolist(), kept["scores"].tolist(), kept["boxes"].tolist(), masks, strict=True
    )
    objects = tuple(
        FoundObject(
            name=card.class_names[label],
            label=label,
            score=score,
            box=(box[0], box[1], box[2], box[3]),
            mask=mask,
        )
        for label, score, box, mask in rows
    )
    return DetectionPrediction(path="", size=found["size"], objects=objects)
