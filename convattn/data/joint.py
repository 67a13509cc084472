"""Transforms of an image together with its boxes or masks, on torchvision's v2 functions.

A target is a `Mask` of class numbers (H, W), or a dict: ``boxes``, `BoundingBoxes` (N, 4) in the
format XYXY; ``masks``, an optional `Mask` (N, H, W) of the same objects; every other tensor, array,
list and tuple has one entry per box, such as ``labels`` (N,), except ``image_id``, ``size`` and
``orig_size``, which belong to the image as numbers and texts do. A `Mask` (H, W) beside boxes is
one of class numbers. Box and mask types are those of `torchvision.tv_tensors`. Boxes become
float32, Boolean masks uint8 and int8 masks int64.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from convattn.data.images import to_channels
from convattn.data.padding import IGNORED
from convattn.data.transforms import ImageOnly, Preprocess, Transform
from convattn.names import check_choice, shown

_OF_THE_IMAGE = ("image_id", "size", "orig_size")
_MASK_TYPES = {torch.bool: torch.uint8, torch.int8: torch.int64}  # types that cannot hold IGNORED


@dataclass(frozen=True)
class JointAugment:
    """How training images are varied together with their boxes or masks.

    Args:
        scale: size of the resized image relative to the size that fits the input, (least, most).
        hflip: probability of a horizontal flip.
        color_jitter: strength of the change of brightness, contrast and saturation.
        min_size: width and height in pixels of the input below which a box is removed; a box
            without any area is always removed.

    Raises:
        ValueError: ``min_size`` is not a number of at least 0.
    """

    scale: tuple[float, float] = (0.5, 1.5)
    hflip: float = 0.5
    color_jitter: float = 0.4
    min_size: float = 1.0

    def __post_init__(self) -> None:
        if not self.min_size >= 0:
            raise ValueError(
                f"JointAugment(min_size={self.min_size}) must be at least 0 pixels; 1.0 is usual"
            )


def joint_eval_transform(preprocess: Preprocess) -> Transform:
    """Return the fixed transform of evaluation: resize by `Preprocess.resized` and normalise.

    The image is not padded. The target is returned as it is, in pixels of the original image, so
    that metrics are computed at the original size.

    Args:
        preprocess: what the model expects of its input.

    Raises:
        ValueError: tensors cannot be resized with the interpolation of ``preprocess``.
    """
    return ImageOnly(_ResizedImage(preprocess))


def joint_train_transform(preprocess: Preprocess, augment: JointAugment) -> Transform:
    """Return the random transform of training: flip, scale jitter, crop or pad, colour jitter.

    Args:
        preprocess: what the model expects of its input.
        augment: how the images are varied.
    """
    size, mode = preprocess.input_size[1:], _interpolation(preprocess)
    steps = [
        v2.RandomHorizontalFlip(augment.hflip),
        _Fit(size, mode, augment.scale),
        _Place(size, _fill(preprocess), anywhere=True),
        v2.ColorJitter(*(augment.color_jitter,) * 3),
    ]
    return _Joint(preprocess, steps, augment.min_size)


class _ResizedImage:
    """An image, resized to the input of a model and normalised.

    Args:
        preprocess: what the model expects of its input.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self.mode = _interpolation(preprocess)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = F.to_image(to_channels(image, self.preprocess.input_size[0]))
        size = list(self.preprocess.resized(image.size))
        return _normalized(F.resize(pixels, size, interpolation=self.mode), self.preprocess)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.preprocess})"


def _interpolation(preprocess: Preprocess) -> InterpolationMode:
    """Return the interpolation as torchvision has it for tensors."""
    name = preprocess.interpolation
    check_choice("interpolation", name, ("bilinear", "bicubic", "nearest", "nearest-exact"))
    return InterpolationMode(name)


def _normalized(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the float tensor (C, H, W) of 8-bit pixels, normalised."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) * 255 for values in (preprocess.mean, preprocess.std)
    )
    values = pixels.as_subclass(Tensor)
    values = values.to(torch.float32, memory_format=torch.contiguous_format)
    return values.sub_(mean).div_(std)


class _Joint:
    """Steps on image and target, removal of small boxes, and normalisation.

    Args:
        preprocess: what the model expects of its input.
        steps: transforms of image and target.
        min_size: width and height below which a box is removed; by default no box is.
    """

    def __init__(
        self, preprocess: Preprocess, steps: list[v2.Transform], min_size: float | None = None
    ) -> None:
        self.preprocess = preprocess
        self.steps = v2.Compose(steps)
        self.min_size = min_size

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        pixels = F.to_image(to_channels(image, self.preprocess.input_size[0]))
        pixels, target = self.steps(pixels, _converted(target))
        if self.min_size is not None and _has_boxes(target):
            target = _without_small(target, self.min_size)
        return _normalized(pixels, self.preprocess), target

    def __repr__(self) -> str:
        return repr(self.steps)


class _Resize(v2.Transform):
    """Resize to the size (height, width) that `_size` returns."""

    def __init__(self, mode: InterpolationMode) -> None:
        super().__init__()
        self.mode = mode

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = v2.query_size(flat_inputs)
        ratio = self._ratio(*sides)
        return {"size": [max(1, round(side * ratio)) for side in sides]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_resized(inpt.as_subclass(Tensor), params["size"]), like=inpt)
        return F.resize(inpt, params["size"], interpolation=self.mode)

    def _ratio(self, height: int, width: int) -> float:
        """Return the new length of a side divided by the present one."""
        raise NotImplementedError


class _Fit(_Resize):
    """Resize to fit ``size`` (height, width) times a random scale; the ratio of sides is kept."""

    def __init__(
        self,
        size: tuple[int, int],
        mode: InterpolationMode,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(mode)
        self.size = size
        self.scale = scale

    def _ratio(self, height: int, width: int) -> float:
        least, most = self.scale
        scale = least if least == most else torch.empty(()).uniform_(least, most).item()
        return scale * min(self.size[0] / height, self.size[1] / width)


def _resized(mask: Tensor, size: list[int]) -> Tensor:
    """Return the mask (..., H, W) at another size: the value at the centre of each new pixel.

    torchvision takes the value at the corner, which moves a smaller mask by half a pixel.
    """
    for dim, new in zip((-2, -1), size, strict=True):
        old = mask.shape[dim]
        mask = mask.index_select(dim, (2 * torch.arange(new) + 1) * old // (2 * new))
    return mask


class _Place(v2.Transform):
    """Crop and pad to ``size`` (height, width): at the top left, or anywhere at random."""

    def __init__(self, size: tuple[int, int], fill: list[float], anywhere: bool = False) -> None:
        super().__init__()
        self.size = size
        self.fill = fill
        self.anywhere = anywhere

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        top, rows, above, below = self._place(height, self.size[0])
        left, columns, before, behind = self._place(width, self.size[1])
        return {
            "crop": (top, left, rows, columns),
            "padding": [before, above, behind, below],
            "has_boxes": v2.has_any(flat_inputs, tv_tensors.BoundingBoxes),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill: list[float] | int = self.fill
        if isinstance(inpt, tv_tensors.Mask):  # masks of single objects have no value for "ignored"
            fill = 0 if params["has_boxes"] and inpt.ndim == 3 else IGNORED
        return F.pad(F.crop(inpt, *params["crop"]), params["padding"], fill=fill)

    def _place(self, side: int, size: int) -> tuple[int, int, int, int]:
        """Return first pixel and number of pixels of the crop, and the padding on both sides."""
        offset = int(torch.randint(abs(size - side) + 1, ())) if self.anywhere else 0
        if side > size:
            return offset, size, 0, 0
        return 0, side, offset, size - side - offset


def _fill(preprocess: Preprocess) -> list[float]:
    """Return the mean colour in 0..255, which normalisation maps to about zero."""
    return [round(255 * mean) for mean in preprocess.mean]


def _has_boxes(target: Any) -> bool:
    return isinstance(target, Mapping) and "boxes" in target


def _converted(target: Any) -> Any:
    """Return the target with float boxes, and masks whose type has the value `IGNORED`.

    Raises:
        ValueError: an entry of the target has another length than the boxes.
    """
    if isinstance(target, tv_tensors.Mask):
        dtype = _MASK_TYPES.get(target.dtype, target.dtype)
        return tv_tensors.wrap(target.as_subclass(Tensor).to(dtype), like=target)
    if isinstance(target, tv_tensors.BoundingBoxes):
        return tv_tensors.wrap(target.as_subclass(Tensor).float(), like=target)
    if not isinstance(target, Mapping):
        return target
    if "boxes" in target:
        _check_lengths(target)
    return {key: _converted(value) for key, value in target.items()}


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


def _without_small(target: Mapping[str, Any], min_size: float) -> dict[str, Any]:
    """Return the target without small boxes; cropping has cut the boxes off at the edges."""
    corners = F.convert_bounding_box_format(
        target["boxes"], new_format=tv_tensors.BoundingBoxFormat.XYXY
    )
    sides = corners[:, 2:].as_subclass(Tensor) - corners[:, :2].as_subclass(Tensor)
    keep = ((sides >= min_size) & (sides > 0)).all(1)
    return {
        key: _selected(value, keep) if _is_per_box(key, value) else value
        for key, value in target.items()
    }


def _selected(value: Any, keep: Tensor) -> Any:
    if isinstance(value, tv_tensors.TVTensor):
        return tv_tensors.wrap(value.as_subclass(Tensor)[keep], like=value)
    if isinstance(value, Tensor):
        return value[keep]
    if isinstance(value, np.ndarray):
        return value[keep.numpy()]
    kept = list(itertools.compress(value, keep.tolist()))
    return tuple(kept) if isinstance(value, tuple) else kept
