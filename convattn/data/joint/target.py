"""The targets of joint transforms: checks, views, and the removal of objects out of view.

A target is a `Mask` of class numbers (H, W), or a dict: ``boxes``, `BoundingBoxes` (N, 4);
``masks``, an optional `Mask` (N, H, W) of the same objects; every other tensor, array, list and
tuple has one entry per box, such as ``labels``, ``crowd`` and ``area`` (N,), except ``image_id``,
``size`` and ``orig_size``, which belong to the image as numbers and texts do. A `Mask` (H, W)
beside boxes is one of class numbers. Box and mask types are those of `torchvision.tv_tensors`.
Boxes become float32 in the format XYXY, Boolean masks uint8 and int8 masks int64.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from convattn.data.joint.views import View
from convattn.names import shown

_OF_THE_IMAGE = ("image_id", "size", "orig_size")
_MASK_TYPES = {torch.bool: torch.uint8, torch.int8: torch.int64}  # types that cannot hold IGNORED


def converted(target: Any, size: tuple[int, int]) -> Any:
    """Return the target with float boxes in XYXY, and masks whose type has the value `IGNORED`.

    Args:
        target: of one image.
        size: height and width of the image.

    Raises:
        ValueError: boxes or masks belong to an image of another size, or an entry of the target has
            another length than the boxes.
    """
    if isinstance(target, tv_tensors.Mask):
        _check_size("a mask", (target.shape[-2], target.shape[-1]), size)
        dtype = _MASK_TYPES.get(target.dtype, target.dtype)
        return tv_tensors.wrap(target.as_subclass(Tensor).to(dtype), like=target)
    if isinstance(target, tv_tensors.BoundingBoxes):
        _check_size("boxes", target.canvas_size, size)
        floats = tv_tensors.wrap(target.as_subclass(Tensor).float(), like=target)
        return F.convert_bounding_box_format(floats, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    if not isinstance(target, Mapping):
        return target
    if "boxes" in target:
        _check_lengths(target)
    return {key: converted(value, size) for key, value in target.items()}


def viewed(target: Any, view: View, min_size: float = 0.0) -> Any:
    """Return the target in pixels of a view.

    Objects are removed if their box has no area in the view or is smaller than ``min_size``, or if
    nothing of their mask is in the view.

    Args:
        target: as `converted` returns it.
        view: of the image.
        min_size: least width and height of a box.
    """
    if isinstance(target, tv_tensors.Mask):
        return view.mask(target)
    if isinstance(target, tv_tensors.BoundingBoxes):
        return view.boxes(target)
    if not isinstance(target, Mapping):
        return target
    if "boxes" not in target:
        return {key: viewed(value, view) for key, value in target.items()}
    boxes = view.boxes(target["boxes"])
    found = _selected({**target, "boxes": boxes}, _is_visible(boxes, min_size))
    found = {k: v if k == "boxes" else viewed(v, view) for k, v in found.items()}
    if isinstance(found.get("masks"), tv_tensors.Mask):
        found = _selected(found, found["masks"].as_subclass(Tensor).flatten(1).any(1).bool())
    return found


def _is_visible(boxes: Tensor, min_size: float) -> Tensor:
    """Return which boxes have an area, and at least ``min_size`` as width and height."""
    sides = boxes[:, 2:].as_subclass(Tensor) - boxes[:, :2].as_subclass(Tensor)
    return ((sides >= min_size) & (sides > 0)).all(1)


def _check_size(what: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    if tuple(found) != size:
        raise ValueError(
            f"{what} of a target belong to an image of {found[1]} x {found[0]} pixels (width x "
            f"height), and the image has {size[1]} x {size[0]}"
        )


def _check_lengths(target: Mapping[str, Any]) -> None:
    boxes = target["boxes"]
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        raise ValueError(
            f"'boxes' of a target is a {type(boxes).__name__} and must be "
            "torchvision.tv_tensors.BoundingBoxes, in the format XYXY"
        )
    for key, value in target.items():
        if _is_per_box(key, value) and len(value) != len(boxes):
            entries = "1 entry" if len(value) == 1 else f"{len(value)} entries"
            raise ValueError(
                f"{shown(key)!r} of a target has {entries} for "
                f"{'1 box' if len(boxes) == 1 else f'{len(boxes)} boxes'}; tensors, arrays and "
                "lists must have one entry per box; what belongs to the whole image must be a "
                f"number or a text, or have the name {' or '.join(_OF_THE_IMAGE)}"
            )


def _is_per_box(key: str, value: Any) -> bool:
    """Return whether an entry of a target has a value for each box."""
    if key in _OF_THE_IMAGE:
        return False
    if isinstance(value, tv_tensors.Mask):
        return value.ndim == 3
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, list | tuple)


def _selected(target: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Return the target with the objects where ``keep`` is True."""
    if keep.all():
        return dict(target)
    return {k: _entries(v, keep) if _is_per_box(k, v) else v for k, v in target.items()}


def _entries(value: Any, keep: Tensor) -> Any:
    if isinstance(value, tv_tensors.TVTensor):
        return tv_tensors.wrap(value.as_subclass(Tensor)[keep], like=value)
    if isinstance(value, Tensor):
        return value[keep]
    if isinstance(value, np.ndarray):
        return value[keep.numpy()]
    kept = list(itertools.compress(value, keep.tolist()))
    return tuple(kept) if isinstance(value, tuple) else kept
