"""Random true objects, and perturbed copies of them as found objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from convattn.runs.rle import encode_mask
from convattn.tasks.detection.objects import Objects

SIZE = (160, 120)  # width and height


def objects_of(
    boxes: Any, labels: Any, *, scores: Any = None, crowd: Any = None, image_id: int = 0
) -> Objects:
    """Return objects whose masks are the ellipses in their boxes; a crowd's mask is its box."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    crowds = torch.as_tensor(crowd if crowd is not None else [False] * count, dtype=torch.bool)
    masks = [_ellipse(b, whole=c) for b, c in zip(boxes.tolist(), crowds.tolist(), strict=True)]
    return Objects(
        boxes=boxes,
        labels=torch.as_tensor(labels, dtype=torch.int64).reshape(-1),
        scores=torch.as_tensor(scores if scores is not None else [1.0] * count),
        crowd=crowds,
        area=torch.tensor([float(mask.sum()) for mask in masks]),
        masks=[encode_mask(mask) for mask in masks],
        image_id=image_id,
    )


def random_images(
    count: int, classes: int, seed: int, *, crowds: bool = True
) -> tuple[list[Objects], list[Objects]]:
    """Return found and true objects of images; some have none of the ones or of the others."""
    rng = np.random.default_rng(seed)
    found, targets = [], []
    for image in range(count):
        number = 0 if image % 5 == 3 else int(rng.integers(1, 7))
        boxes = _boxes(rng, number)
        labels = rng.integers(0, classes, number)
        crowd = (rng.random(number) < 0.2) if crowds else np.zeros(number, bool)
        targets.append(objects_of(boxes, labels, crowd=crowd, image_id=7 * image + 3))
        copies = np.repeat(np.arange(number), rng.integers(0, 4, number))
        moved = boxes[copies] + rng.normal(0, 2, (len(copies), 4))
        more = _boxes(rng, 0 if image % 5 == 4 else 3)
        everything = np.concatenate([moved, more])
        everything[:, 2:] = np.maximum(everything[:, 2:], everything[:, :2] + 2)
        other = rng.integers(0, classes, len(everything))
        wrong = rng.random(len(copies)) < 0.2
        other[: len(copies)][~wrong] = labels[copies][~wrong]
        scores = rng.random(len(everything)).astype(np.float32)
        found.append(objects_of(everything, other, scores=scores))
    return found, targets


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 0.7, (count, 2)) * SIZE
    sides = rng.uniform(1, 3, (count, 2)) ** 2 * rng.choice([3, 12], (count, 1))
    return np.concatenate([corners, np.minimum(corners + sides, SIZE)], 1)


def _ellipse(box: list[float], *, whole: bool) -> np.ndarray:
    left, top, right, bottom = box
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] + 0.5
    x = (columns - (left + right) / 2) / max((right - left) / 2, 1e-9)
    y = (rows - (top + bottom) / 2) / max((bottom - top) / 2, 1e-9)
    inside = np.maximum(abs(x), abs(y)) if whole else x**2 + y**2
    return inside <= 1
