"""Found and true objects of an image, in pixels of the original image, as the metrics need them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from convattn.runs.rle import Rle, encode_mask

_INSIDE = 0.5  # probability from which a pixel belongs to an object
_LEAST = 1e-6  # width and height of a box, to divide by


class Found(TypedDict):
    """The objects that a model found in one image.

    Args:
        boxes: (N, 4) as left, top, right, bottom in pixels of the original image.
        scores: (N,), the highest first.
        labels: (N,), class numbers from 0.
        masks: (N, 1, 28, 28), probabilities on a grid over the box; None without masks.
        size: width and height of the image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None
    size: tuple[int, int]


class Objects(TypedDict):
    """Found or true objects on the CPU; for found objects, crowd is False and area is 0.

    Args:
        boxes: (N, 4) as left, top, right, bottom in pixels of the original image.
        labels: (N,), class numbers from 0.
        scores: (N,) of found objects.
        crowd: (N,), whether an object is a crowd, which counts neither as found nor as missed.
        area: (N,), in pixels.
        masks: a mask of each object; empty without masks.
        image_id: of the annotation file.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    crowd: Tensor
    area: Tensor
    masks: list[Rle]
    image_id: int


def found_objects(
    objects: Mapping[str, Tensor], resized: tuple[int, int], size: tuple[int, int]
) -> Found:
    """Return what a detector found, in pixels of the original image.

    Args:
        objects: what the detector returned for an image.
        resized: height and width of the image in the input.
        size: width and height of the original image.
    """
    boxes = objects["boxes"].float()
    limits = boxes.new_tensor([*size, *size])
    factors = limits / boxes.new_tensor([resized[1], resized[0]] * 2)
    return Found(
        boxes=torch.minimum(boxes * factors, limits),
        scores=objects["scores"].float(),
        labels=objects["labels"],
        masks=objects.get("masks"),
        size=size,
    )


def kept_found(found: Found) -> Objects:
    """Return found objects on the CPU, with masks of the size of the original image."""
    count = len(found["labels"])
    return Objects(
        boxes=found["boxes"].cpu(),
        labels=found["labels"].cpu(),
        scores=found["scores"].cpu(),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.zeros(count),
        masks=_pasted(found),
        image_id=0,
    )


def finite(objects: Objects) -> Objects:
    """Return the found objects; no objects if the model computed NaN for the image."""
    if objects["scores"].isfinite().all():
        return objects
    tensors = {key: value[:0] for key, value in objects.items() if isinstance(value, Tensor)}
    return Objects(**{**objects, **tensors, "masks": []})  # type: ignore[typeddict-item]


def kept_target(target: Mapping[str, Any]) -> Objects:
    """Return the true objects of an image on the CPU."""
    labels = _plain(target["labels"])
    masks = target.get("masks")
    return Objects(
        boxes=_plain(target["boxes"]).float(),
        labels=labels,
        scores=torch.ones(len(labels)),
        crowd=_plain(target["crowd"]),
        area=_plain(target["area"]),
        masks=[] if masks is None else [encode_mask(mask) for mask in _plain(masks).numpy()],
        image_id=int(target["image_id"]),
    )


def paste_mask(mask: Tensor, box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return the probabilities (height, width) of the pixels of an image that an object has.

    A pixel has the bilinear interpolation at its centre, and 0 outside of the box. torchvision's
    function rounds the box to pixels and adds one to its width and height, which costs a fifth of
    the IoU of an object of ten pixels.

    Args:
        mask: (h, w), probabilities on a grid over the box.
        box: left, top, right and bottom in pixels.
        size: width and height of the image.
    """
    width, height = size
    left, top, right, bottom = box
    columns, across = _weights(left, right, width, mask.shape[1])
    rows, down = _weights(top, bottom, height, mask.shape[0])
    image = mask.new_zeros(height, width)
    image[rows, columns] = down @ mask @ across.T
    return image


def _weights(low: float, high: float, pixels: int, cells: int) -> tuple[slice, Tensor]:
    """Return the pixels of an axis between two limits, and the weights (pixels, cells) of each."""
    first, last = max(math.floor(low), 0), min(math.ceil(high), pixels)
    centres = torch.arange(first, last, dtype=torch.float32) + 0.5
    positions = (centres - low) / max(high - low, _LEAST) * cells - 0.5
    return slice(first, last), (1 - (positions[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _pasted(found: Found) -> list[Rle]:
    """Return the mask of each object at the size of the image."""
    if found["masks"] is None:
        return []
    masks, boxes = found["masks"][:, 0].float().cpu(), found["boxes"].tolist()
    return [  # one at a time: all of them may not fit into memory
        encode_mask(paste_mask(mask, box, found["size"]).numpy() >= _INSIDE)
        for mask, box in zip(masks, boxes, strict=True)
    ]


def _plain(value: Any) -> Tensor:
    """Return a tensor on the CPU, without the type that transforms give it."""
    return torch.as_tensor(value).as_subclass(Tensor).cpu()
