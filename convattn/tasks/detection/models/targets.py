"""The objects of a batch in the form that the heads need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Objects = dict[str, Tensor]
COVERED = 0.5  # share of a box inside a crowd from which the box is not a negative example


def prepare_targets(
    targets: Sequence[Mapping[str, Any]], images: Tensor, num_classes: int, *, masks: bool
) -> list[Objects]:
    """Return plain tensors of each image's objects, with the boxes of crowds apart.

    Args:
        targets: the targets as in `Detector.forward`.
        images: the images (B, C, H, W).
        num_classes: number of classes.
        masks: whether masks are needed.

    Returns:
        For each image ``boxes`` (N, 4) in float32, ``labels`` (N,), ``crowd_boxes`` (M, 4), and
        ``masks`` (N, h, w), if they are needed.

    Raises:
        ValueError: the targets do not fit the images, a box has no area or is not finite, or a
            label is out of range; the message names the image.
    """
    if len(targets) != len(images):
        raise ValueError(
            f"there must be a target for each image, got {len(targets)} for {len(images)}"
        )
    prepared = [
        _prepare(target, _named(target, i), images, masks) for i, target in enumerate(targets)
    ]
    _check_values(targets, prepared, num_classes)
    return prepared


def covered(boxes: Tensor, crowd: Tensor) -> Tensor:
    """Return which boxes (N, 4) have more than half of their area in a box of ``crowd`` (M, 4)."""
    low = torch.maximum(boxes[:, None, :2], crowd[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], crowd[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return (shared > COVERED * area[:, None]).any(1)


def _named(target: Mapping[str, Any], index: int) -> str:
    identity = target.get("image_id")
    return f"image {index} of the batch" + ("" if identity is None else f" (image_id {identity})")


def _prepare(
    target: Mapping[str, Any], image: str, images: Tensor, masks: bool
) -> dict[str, Tensor]:
    device = images.device
    missing = [k for k in ("boxes", "labels", *(["masks"] if masks else [])) if k not in target]
    if missing:
        raise ValueError(f"the target of {image} has no {missing[0]!r}")
    boxes = _plain(target["boxes"], device).float()
    labels = _plain(target["labels"], device).long()
    if boxes.shape != (len(labels), 4):
        raise ValueError(
            f"{image} has boxes of shape {tuple(boxes.shape)}, and its {len(labels)} labels need "
            f"({len(labels)}, 4)"
        )
    crowd = target.get("crowd")
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    if crowd is not None:
        ignored = _plain(crowd, device).bool()
    if ignored.shape != labels.shape:
        raise ValueError(
            f"{image} has crowd of shape {tuple(ignored.shape)}, and its {len(labels)} labels need "
            f"({len(labels)},)"
        )
    objects = {
        "boxes": boxes[~ignored],
        "labels": labels[~ignored],
        "crowd_boxes": boxes[ignored],
    }
    if masks:
        every = _plain(target["masks"], device)
        if every.dim() != 3 or len(every) != len(labels):
            raise ValueError(
                f"{image} has masks of shape {tuple(every.shape)}, and its {len(labels)} labels "
                f"need ({len(labels)}, height, width)"
            )
        (height, width), (most_rows, most_columns) = every.shape[1:], images.shape[2:]
        if height > most_rows or width > most_columns:
            raise ValueError(
                f"{image} has masks of {height} x {width} pixels, more than the input of "
                f"{most_rows} x {most_columns}; resize them with the image"
            )
        objects["masks"] = every[~ignored]
    return objects


def _plain(value: Any, device: torch.device) -> Tensor:
    """Return a tensor without the subclass that torchvision's transforms give it."""
    return torch.as_tensor(value, device=device).as_subclass(Tensor)


def _check_values(
    targets: Sequence[Mapping[str, Any]], prepared: list[Objects], num_classes: int
) -> None:
    """Raise if a box has no area or a label is out of range, with one transfer from the device."""
    boxes = torch.cat([o["boxes"] for o in prepared])
    labels = torch.cat([o["labels"] for o in prepared])
    wrong_box = ~(torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    wrong_label = (labels < 0) | (labels >= num_classes)
    if not bool((wrong_box | wrong_label).any()):
        return
    first = int((wrong_box | wrong_label).nonzero()[0])
    counts = [len(o["labels"]) for o in prepared]
    index = next(i for i in range(len(counts)) if first < sum(counts[: i + 1]))
    image = _named(targets[index], index)
    if bool(wrong_box[first]):
        raise ValueError(
            f"{image} has the box {boxes[first].tolist()} (x1, y1, x2, y2), which has no area; "
            "leave such objects out"
        )
    raise ValueError(
        f"{image} has the label {int(labels[first])}, and labels must be from 0 to "
        f"{num_classes - 1}"
    )
