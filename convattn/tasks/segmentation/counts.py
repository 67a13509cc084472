"""Counts of pixels by true and predicted class, and the metrics that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from convattn.data.joint.padding import IGNORED

_VALUES = 256  # of a mask


@dataclass(frozen=True)
class Metrics:
    """The metrics of a confusion matrix, float64; NaN where a class, or all, have no pixels.

    Args:
        iou: (K,), intersection over union of each class: pixels of which both the true and the
            predicted class are this class, divided by those of which one is.
        accuracy: (K,), share of the pixels of each class that are predicted correctly.
        mean_iou: mean over the classes that occur in a true or in a predicted mask.
        mean_accuracy: mean over the classes that occur in a true mask.
        pixel_accuracy: share of all pixels that are predicted correctly.
    """

    iou: Tensor
    accuracy: Tensor
    mean_iou: Tensor
    mean_accuracy: Tensor
    pixel_accuracy: Tensor


def count_pixels(predicted: Tensor, target: Tensor) -> Tensor:
    """Count the pixels of one image by true and predicted class, without those of target 255.

    Args:
        predicted: class numbers, uint8 (H, W); 255 for no class.
        target: class numbers, uint8 (H, W).

    Returns:
        (N, 2), int64, for each pair that occurs: ``256 * true class + predicted class``, and the
        number of pixels.

    Raises:
        ValueError: the masks have different sizes.
    """
    target = target.as_subclass(Tensor).to(predicted.device)
    if predicted.shape != target.shape:
        raise ValueError(
            f"the mask of an image has {tuple(target.shape)} rows and columns, and the image has "
            f"{tuple(predicted.shape)}"
        )
    cells = target.long().mul_(_VALUES).add_(predicted)[target != IGNORED]
    counts = torch.bincount(cells, minlength=_VALUES * _VALUES)
    found = counts.nonzero()[:, 0]
    return torch.stack([found, counts[found]], 1)


def confusion_of(pairs: Tensor, num_classes: int, ignored: tuple[int, ...] = ()) -> Tensor:
    """Return the counts that `count_pixels` returned as a matrix, without those of some classes.

    Args:
        pairs: (N, 2), of one image or of several.
        num_classes: number of classes K.
        ignored: true classes that do not count.

    Returns:
        (K, K + 1), int64, by true and predicted class; the last column counts pixels without a
        predicted class.
    """
    true, predicted = pairs[:, 0] // _VALUES, (pairs[:, 0] % _VALUES).clamp(max=num_classes)
    matrix = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=pairs.device)
    matrix.index_put_((true, predicted), pairs[:, 1], accumulate=True)
    matrix[list(ignored)] = 0
    return matrix


def metrics_of(confusion: Tensor) -> Metrics:
    """Return the metrics of counts (K, K + 1) or (K, K) by true and predicted class."""
    counts = confusion.cpu().double()  # exact up to 2^53 pixels; GPUs of Apple have no float64
    classes = len(counts)
    hits, true = counts.diagonal(), counts.sum(1)
    union = true + counts[:, :classes].sum(0) - hits
    iou, accuracy = hits / union, hits / true
    return Metrics(
        iou=iou,
        accuracy=accuracy,
        mean_iou=iou.nanmean(),
        mean_accuracy=accuracy.nanmean(),
        pixel_accuracy=hits.sum() / true.sum(),
    )


class SegmentationMeter(Metric):
    """Mean IoU, pixel accuracy and mean accuracy of the classes over all images and processes.

    Args:
        num_classes: number of classes.
        ignored: true classes that do not count.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, ignored: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignored = ignored
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", empty, dist_reduce_fx="sum")

    def update(self, counts: list[Tensor], targets: list[None]) -> None:
        """Add images: what `count_pixels` returned for each."""
        pairs = torch.cat(counts).to(self.confusion.device)
        self.confusion += confusion_of(pairs, self.num_classes, self.ignored)

    def compute(self) -> dict[str, Tensor]:
        """Return the shares."""
        found = metrics_of(self.confusion)
        values = {"miou": found.mean_iou, "acc": found.pixel_accuracy, "macc": found.mean_accuracy}
        return {name: value.float() for name, value in values.items()}
