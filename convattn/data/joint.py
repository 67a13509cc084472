"""Transforms of an image together with its boxes or masks, on torchvision's v2 functions.

A target is a `Mask` of class numbers (H, W), or a dict: ``boxes``, `BoundingBoxes` (N, 4) in the
format XYXY; ``masks``, an optional `Mask` (N, H, W) of the same objects; every other tensor has one
entry per box, such as ``labels`` (N,). Box and mask types are those of `torchvision.tv_tensors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from convattn.data.images import to_channels
from convattn.data.transforms import Preprocess, Transform

IGNORED = 255  # class number of mask pixels that no loss and no metric counts, such as padding


@dataclass(frozen=True)
class JointAugment:
    """How training images are varied together with their boxes or masks.

    Args:
        scale: size of the resized image relative to the size that fits the input, (least, most).
        hflip: probability of a horizontal flip.
        color_jitter: strength of the change of brightness, contrast and saturation.
        min_size: width and height in pixels of the input below which a box is removed.
    """

    scale: tuple[float, float] = (0.5, 1.5)
    hflip: float = 0.5
    color_jitter: float = 0.4
    min_size: float = 1.0


def joint_eval_transform(
    preprocess: Preprocess, *, short_side: int | None = None, long_side: int | None = None
) -> Transform:
    """Return the fixed transform of evaluation: resize, pad, normalise.

    The ratio of the sides is kept. By default the image is resized to fit the input and padded on
    the right and at the bottom; with ``short_side`` or ``long_side`` it is not padded.

    Args:
        preprocess: what the model expects of its input.
        short_side: length of the shorter side.
        long_side: length of the longer side, with ``short_side`` the largest length.
    """
    mode = InterpolationMode(preprocess.interpolation)
    if short_side is None and long_side is None:
        size = preprocess.input_size[1:]
        return _Joint(preprocess, [_Resize(size, mode), _Place(size, _fill(preprocess))])
    short = None if short_side is None else [short_side]
    return _Joint(preprocess, [v2.Resize(short, interpolation=mode, max_size=long_side)])


def joint_train_transform(preprocess: Preprocess, augment: JointAugment) -> Transform:
    """Return the random transform of training: flip, scale jitter, crop or pad, colour jitter.

    Args:
        preprocess: what the model expects of its input.
        augment: how the images are varied.
    """
    size, mode = preprocess.input_size[1:], InterpolationMode(preprocess.interpolation)
    steps = [
        v2.RandomHorizontalFlip(augment.hflip),
        _Resize(size, mode, augment.scale),
        _Place(size, _fill(preprocess), anywhere=True),
        v2.ColorJitter(*(augment.color_jitter,) * 3),
    ]
    return _Joint(preprocess, steps, augment.min_size)


class _Joint:
    """Steps on image and target, then clamping and removal of boxes and normalisation."""

    def __init__(
        self, preprocess: Preprocess, steps: list[v2.Transform], min_size: float = 1.0
    ) -> None:
        self.preprocess = preprocess
        self.steps = v2.Compose(steps)
        self.clean = v2.Compose(
            [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size, labels_getter=_per_box)]
        )

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        pixels = F.to_image(to_channels(image, self.preprocess.input_size[0]))
        pixels, target = self.steps(pixels, target)
        if isinstance(target, dict) and "boxes" in target:
            target = self.clean(target)
        values = F.to_dtype(pixels, torch.float32, scale=True)
        values = F.normalize(values, list(self.preprocess.mean), list(self.preprocess.std))
        return values.as_subclass(Tensor), target

    def __repr__(self) -> str:
        return repr(self.steps)


class _Resize(v2.Transform):
    """Resize to fit ``size`` (height, width) times a random scale; the ratio of sides is kept."""

    def __init__(
        self,
        size: tuple[int, int],
        mode: InterpolationMode,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.size = size
        self.mode = mode
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        least, most = self.scale
        scale = least if least == most else torch.empty(()).uniform_(least, most).item()
        ratio = scale * min(self.size[0] / height, self.size[1] / width)
        return {"size": [max(1, round(side * ratio)) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, params["size"], interpolation=self.mode)


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
        # Masks of single objects have no value for "ignored".
        objects = v2.has_any(flat_inputs, tv_tensors.BoundingBoxes)
        return {
            "crop": (top, left, rows, columns),
            "padding": [before, above, behind, below],
            "mask_fill": 0 if objects else IGNORED,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = params["mask_fill"] if isinstance(inpt, tv_tensors.Mask) else self.fill
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


def _per_box(target: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return the tensors of a target that have one entry per box, the boxes and masks excepted."""
    return tuple(
        value
        for value in target.values()
        if isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor)
    )
