"""The evaluation of a segmenter: metrics of all pixels, of each class and of each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from convattn.data import DataSource, ImageSet
from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.confusion import Confusion
from convattn.tasks.segmentation.counts import confusion_of, metrics_of
from convattn.training.evaluation import Found, TaskEvaluation, csv_row, nan_notes, worst_classes

_MAX_PAIRS = 5  # rows of the table of confused classes
_MAX_WORST = 20  # images with the lowest mean IoU


@dataclass(frozen=True)
class ClassIoU:
    """Number of true pixels, IoU and accuracy of one class; None where there are no pixels."""

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ImageIoU:
    """The metrics of one image; None where no pixel counts."""

    index: int
    path: str
    mean_iou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(TaskEvaluation):
    """The metrics of a segmenter on a set of images, at their original sizes.

    Args:
        method: name of the method.
        num_classes: number of classes.
        class_names: in the order of their numbers.
        mean_iou: mean intersection over union of the classes that occur in a true or in a
            predicted mask.
        pixel_accuracy: share of the pixels whose class is predicted correctly.
        mean_accuracy: mean over the classes of the share of their pixels that are predicted
            correctly.
        per_class: metrics of the classes.
        confusion: ``confusion[true][predicted]`` is the number of pixels.
        worst: the images with the lowest mean IoU, the lowest first.
        predictions: one per image.
    """

    prediction_columns: ClassVar[tuple[str, ...]] = ("index", "path", "mean_iou", "pixel_accuracy")

    method: str
    num_classes: int
    class_names: list[str]
    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    per_class: list[ClassIoU]
    confusion: Confusion
    worst: list[ImageIoU]
    predictions: list[ImageIoU]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single predictions, as plain values."""
        return {
            **super().to_dict(),
            "per_class": [asdict(result) for result in self.per_class],
            "confusion": self.confusion.to_json(),
            "worst": [asdict(result) for result in self.worst],
        }

    def headline(self) -> list[tuple[str, str]]:
        """Return mean IoU and accuracies."""
        return [
            ("mean IoU", f"{self.mean_iou:.2%}"),
            ("pixel accuracy", f"{self.pixel_accuracy:.2%}"),
            ("mean class accuracy", f"{self.mean_accuracy:.2%}"),
        ]

    def table(self) -> str:
        """Return the metrics of the classes, the worst ones where there are many; confusions."""
        return "\n".join([*self._class_lines(), *self._confused_lines()])

    def confused(self) -> list[tuple[str, str, float]]:
        """Return pairs of a true and a wrongly predicted class with the share of the true class.

        The largest number of pixels is first.
        """
        pixels = [row.pixels for row in self.per_class]
        cells = [cell for cell in self.confusion.counts() if cell[0] != cell[1]]
        cells.sort(key=lambda cell: (-cell[2], cell[:2]))
        return [
            (self.class_names[true], self.class_names[predicted], count / pixels[true])
            for true, predicted, count in cells
        ]

    def best_line(self) -> str:
        """Return the mean IoU and the number of images."""
        return f"{self.mean_iou:.2%} mean IoU ({self.images} held-out images)"

    def prediction_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of ``predictions.csv``."""
        return [csv_row(row) for row in self.predictions]

    def _class_lines(self) -> list[str]:
        known = [(row.iou, row) for row in self.per_class if row.iou is not None]
        title, rows = worst_classes(known, lambda pair: pair[0])
        names = [shown(row.name) for _, row in rows]
        width = max(map(len, [title, *names]))
        lines = [f"{title:{width}}         pixels     IoU  accuracy"]
        for name, (iou, row) in zip(names, rows, strict=True):
            accuracy = "none" if row.accuracy is None else f"{row.accuracy:.1%}"
            lines.append(f"{name:{width}}  {row.pixels:13,}  {iou:6.1%}  {accuracy:>8}")
        return lines

    def _confused_lines(self) -> list[str]:
        pairs = self.confused()[:_MAX_PAIRS]
        lines = [
            f"  {share:6.1%} of {shown(true)} is predicted as {shown(predicted)}"
            for true, predicted, share in pairs
        ]
        return ["", "most confused pixels", *lines] if lines else []


def summarise(
    card: ModelCard,
    data: DataSource,
    images: ImageSet,
    found: Found,
    ignored: tuple[int, ...] = (),
) -> SegmentationEvaluation:
    """Compute the metrics from the counts of pixels of each image.

    Args:
        card: the model card.
        data: has the names of the classes.
        images: has the paths of the images.
        found: its outputs are those of `count_pixels`.
        ignored: numbers of classes that do not count.
    """
    classes = data.num_classes
    counts: list[Tensor] = [pairs for batch in found.outputs for pairs in batch]
    confusions = (confusion_of(pairs, classes, ignored) for pairs in counts)
    total = torch.zeros(classes, classes + 1, dtype=torch.int64)
    rows, failed = [], 0
    for number, confusion in zip(found.numbers, confusions, strict=True):
        total += confusion
        failed += bool(confusion[:, classes].any())
        image = metrics_of(confusion)
        shares = (_share(image.mean_iou), _share(image.pixel_accuracy))
        rows.append(ImageIoU(number, images.path(number), *shares))
    metrics = metrics_of(total)
    known = [row for row in rows if row.mean_iou is not None]
    return SegmentationEvaluation(
        model=card.model,
        method=card.method,
        data=data.name,
        split=found.split,
        num_classes=classes,
        class_names=list(data.class_names),
        images=len(counts),
        mean_iou=metrics.mean_iou.item(),
        pixel_accuracy=metrics.pixel_accuracy.item(),
        mean_accuracy=metrics.mean_accuracy.item(),
        per_class=[
            ClassIoU(name, int(pixels), _share(iou), _share(accuracy))
            for name, pixels, iou, accuracy in zip(
                data.class_names, total.sum(1), metrics.iou, metrics.accuracy, strict=True
            )
        ],
        confusion=_confusion(total[:, :classes]),
        images_per_second=found.images_per_second,
        parameters=found.parameters,
        broken=found.broken,
        worst=sorted(known, key=lambda row: (row.mean_iou or 0.0, row.index))[:_MAX_WORST],
        predictions=rows,
        notes=[*found.notes, *nan_notes(failed)],
        epoch=card.epoch,
    )


def _confusion(counts: Tensor) -> Confusion:
    cells = counts.nonzero().tolist()
    return Confusion(
        len(counts), ((true, found, int(counts[true, found])) for true, found in cells)
    )


def _share(value: Tensor) -> float | None:
    return None if math.isnan(value) else value.item()
