"""The evaluation of a classifier: accuracies, confusion matrix, single predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from convattn.data import DataSource, ImageSet
from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.confusion import Confusion
from convattn.tasks.classification.report import PREDICTION_COLUMNS, PredictionRow
from convattn.training.evaluation import Found, TaskEvaluation, csv_row, worst_classes


@dataclass(frozen=True)
class ClassResult:
    """Number of images and accuracy of one class; the accuracy is None without images."""

    name: str
    images: int
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation(TaskEvaluation):
    """The metrics of a classifier on a set of images.

    Args:
        num_classes: number of classes.
        class_names: in the order of their numbers.
        top1: share of the images whose class has the highest score.
        top5: share of the images whose class is among the five highest scores.
        loss: mean cross-entropy.
        per_class: accuracies of the classes.
        confusion: ``confusion[true][predicted]`` is the number of images.
        predictions: one per image.
    """

    prediction_columns: ClassVar[tuple[str, ...]] = PREDICTION_COLUMNS

    num_classes: int
    class_names: list[str]
    top1: float
    top5: float
    loss: float
    per_class: list[ClassResult]
    confusion: Confusion
    predictions: list[PredictionRow]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single predictions, as plain values."""
        per_class = [asdict(result) for result in self.per_class]
        confusion = self.confusion.to_json()
        return {**super().to_dict(), "per_class": per_class, "confusion": confusion}

    def headline(self) -> list[tuple[str, str]]:
        """Return the accuracies and the loss."""
        return [
            ("top-1", f"{self.top1:.2%}"),
            (f"top-{min(5, self.num_classes)}", f"{self.top5:.2%}"),
            ("loss", f"{self.loss:.4f}"),
        ]

    def table(self) -> str:
        """Return the accuracy of each class, or of the worst classes where there are many."""
        known = [(row.accuracy, row) for row in self.per_class if row.accuracy is not None]
        title, rows = worst_classes(known, lambda pair: pair[0])
        names = [shown(row.name) for _, row in rows]
        width = max(map(len, [title, *names]))
        lines = [f"{title:{width}}  images  accuracy"]
        lines += [
            f"{name:{width}}  {row.images:6,}  {accuracy:8.1%}"
            for name, (accuracy, row) in zip(names, rows, strict=True)
        ]
        return "\n".join(lines)

    def best_line(self) -> str:
        """Return the top-1 accuracy and the number of images."""
        right = round(self.top1 * self.images)
        return f"{self.top1:.2%} top-1 ({right} of {self.images} held-out images)"

    def prediction_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of ``predictions.csv``."""
        return [csv_row(row) for row in self.predictions]


def summarise(card: ModelCard, data: DataSource, images: ImageSet, found: Found) -> Evaluation:
    """Compute the metrics from scores and labels."""
    classes = data.num_classes
    scores, labels = torch.cat(found.outputs), torch.cat(found.targets)
    best = scores.topk(min(5, classes)).indices
    hits = best == labels[:, None]
    return Evaluation(
        model=card.model,
        data=data.name,
        split=found.split,
        num_classes=classes,
        class_names=list(data.class_names),
        images=len(labels),
        top1=hits[:, 0].float().mean().item(),
        top5=hits.any(-1).float().mean().item(),
        loss=F.cross_entropy(scores, labels).item(),
        images_per_second=found.images_per_second,
        per_class=_per_class(data.class_names, labels, labels[hits[:, 0]]),
        confusion=Confusion.of(labels, best[:, 0], classes),
        parameters=found.parameters,
        broken=found.broken,
        predictions=_predictions(images, found.numbers, scores.softmax(-1), labels, best[:, 0]),
        notes=found.notes,
        epoch=card.epoch,
    )


def _predictions(
    images: ImageSet, numbers: list[int], probabilities: Tensor, labels: Tensor, best: Tensor
) -> list[PredictionRow]:
    rows = torch.arange(len(best))
    columns = (
        numbers,
        labels.tolist(),
        best.tolist(),
        probabilities[rows, best].tolist(),
        probabilities[rows, labels].tolist(),
    )
    return [
        PredictionRow(number, images.path(number), *rest)
        for number, *rest in zip(*columns, strict=True)
    ]


def _per_class(names: Sequence[str], labels: Tensor, right: Tensor) -> list[ClassResult]:
    """Return the results of the classes.

    Args:
        names: names of the classes.
        labels: (N,), classes of the images.
        right: classes of the correctly classified images.
    """
    images, hits = (numbers.bincount(minlength=len(names)).tolist() for numbers in (labels, right))
    return [
        ClassResult(name, count, hit / count if count else None)
        for name, count, hit in zip(names, images, hits, strict=True)
    ]
