"""Which found object belongs to which true one, for confusions and for the worst images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from convattn.tasks.detection.objects import Objects

IOU = 0.5  # from this IoU a found object belongs to a true one


@dataclass(frozen=True)
class Matches:
    """The matched objects of an image.

    Args:
        pairs: number of objects by (true class, found class). A found object without a true one has
            ``background`` as its true class; a true object that was not found has it as its found
            class.
        right: number of objects found with their class.
        missed: number of true objects that were not found, or with another class.
        false: number of found objects without a true one of their class.
    """

    pairs: Counter[tuple[int, int]]
    right: int
    missed: int
    false: int


def match(found: Objects, target: Objects, score: float, background: int) -> Matches:
    """Match the found and the true objects of an image by their boxes.

    The found object with the highest score chooses first, among the true objects of its class with
    an IoU of at least 0.5. Then those that are left choose among the true objects of other classes.
    A found object that lies at least half in a crowd of its class is left out.

    Args:
        found: the found objects.
        target: the true objects.
        score: found objects with a lower score are left out.
        background: the number that stands for no object in the pairs.
    """
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["scores"][order] >= score]
    boxes, labels = found["boxes"][order], found["labels"][order]
    real = ~target["crowd"]
    true_boxes, true_labels = target["boxes"][real], target["labels"][real]
    iou = box_iou(boxes, true_boxes)
    same = labels[:, None] == true_labels[None]
    partner = torch.full((len(boxes),), -1)
    for allowed in (same, ~same):
        _choose(iou.where(allowed, 0.0), partner)
    alone = partner < 0
    ignored = alone & _in_crowd(boxes, labels, target)
    pairs: Counter[tuple[int, int]] = Counter()
    for label, chosen, is_ignored in zip(
        labels.tolist(), partner.tolist(), ignored.tolist(), strict=True
    ):
        if not is_ignored:
            pairs[background if chosen < 0 else int(true_labels[chosen]), label] += 1
    taken = set(partner.tolist())
    for index, label in enumerate(true_labels.tolist()):
        if index not in taken:
            pairs[label, background] += 1
    right = sum(count for (true, label), count in pairs.items() if true == label)
    used = len(boxes) - int(ignored.sum())
    return Matches(pairs, right, len(true_labels) - right, used - right)


def _choose(iou: Tensor, partner: Tensor) -> None:
    """Give each found object without a partner the free true one of the highest IoU.

    Args:
        iou: (found, true), zero where the two cannot be partners.
        partner: (found,), the index of the true object or -1; changed in place.
    """
    free = torch.ones(iou.shape[1], dtype=torch.bool)
    free[partner[partner >= 0]] = False
    for index in (partner < 0).nonzero().flatten().tolist():
        if not free.any():
            return
        best = iou[index].where(free, -1.0).argmax()
        if iou[index, best] >= IOU:
            partner[index] = best
            free[best] = False


def _in_crowd(boxes: Tensor, labels: Tensor, target: Objects) -> Tensor:
    """Return which boxes have at least half of their area in a crowd of their class."""
    crowds, of_class = target["boxes"][target["crowd"]], target["labels"][target["crowd"]]
    low = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    inside = shared >= IOU * box_area(boxes)[:, None]
    return (inside & (labels[:, None] == of_class[None])).any(1)
