"""Transforms of an image together with its boxes or masks; `joint_target` says what a target is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from convattn.data.images import to_channels
from convattn.data.joint.colour import distort, jitter
from convattn.data.joint.padding import IGNORED, pad_to, padded_size
from convattn.data.joint.target import converted, viewed
from convattn.data.joint.views import View, whole
from convattn.data.transforms import ImageOnly, Preprocess, Transform
from convattn.names import check_choice

_TRIES = 10  # random crops that are tried for `JointAugment.cat_max_ratio`


@dataclass(frozen=True)
class JointAugment:
    """How training images are varied together with their boxes or masks.

    An image is resized by a random ``scale`` and a random window of the input's height and width is
    cut out (large-scale jitter). With ``short_sides`` the image is resized to a random length of
    the shorter side instead, and it is not cut to a fixed size.

    Args:
        scale: size of the resized image relative to `Preprocess.resized`, (least, most).
        hflip: probability of a horizontal flip.
        color_jitter: strength of the change of brightness, contrast and saturation.
        min_size: width and height in pixels of the input below which a box is removed; a box
            without any area is always removed.
        short_sides: lengths of the shorter side, one of which is chosen for each image; the longer
            side has at most the length ``long_side`` of `Preprocess`.
        crop_sides: with ``short_sides``: half of the images are first resized to one of these
            lengths of the shorter side, and a random window is cut out.
        crop_range: least and greatest height and width of this window, as far as the image reaches.
        cat_max_ratio: for masks of class numbers: if the most frequent class has a larger share of
            a random window, another window is tried, up to ten times.
        photometric: whether brightness, contrast, saturation and hue are distorted, see
            `convattn.data.joint.colour`.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    scale: tuple[float, float] = (0.5, 1.5)
    hflip: float = 0.5
    color_jitter: float = 0.4
    min_size: float = 1.0
    short_sides: tuple[int, ...] = ()
    crop_sides: tuple[int, ...] = ()
    crop_range: tuple[int, int] = (384, 600)
    cat_max_ratio: float = 1.0
    photometric: bool = False

    def __post_init__(self) -> None:
        least, most = self.scale
        self._check("scale", 0 < least <= most < float("inf"), "(least, most), both above 0")
        self._check("hflip", 0 <= self.hflip <= 1, "a probability in 0..1; 0.5 is usual")
        self._check("color_jitter", self.color_jitter >= 0, "at least 0; 0.4 is usual")
        self._check("min_size", self.min_size >= 0, "at least 0 pixels; 1.0 is usual")
        for name in ("short_sides", "crop_sides"):
            sides = getattr(self, name)
            self._check(name, all(type(s) is int and s > 0 for s in sides), "lengths above 0")
        self._check(
            "crop_sides", bool(self.short_sides) or not self.crop_sides, "given with short_sides"
        )
        smallest, largest = self.crop_range
        self._check("crop_range", 0 < smallest <= largest, "(least, most), both above 0")
        self._check("cat_max_ratio", 0 < self.cat_max_ratio <= 1, "above 0 and at most 1")

    def _check(self, name: str, is_right: bool, expected: str) -> None:
        if not is_right:
            raise ValueError(f"JointAugment({name}={getattr(self, name)}) must be {expected}")


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
    """Return the random transform of training: resize, crop, flip, colours, normalise.

    A target with boxes may have no object left. Its image is not padded: the ``canvas_size`` of the
    boxes is the size of the image, and `collate_padded` pads the batch. A target that is a mask of
    class numbers is padded with `IGNORED`, and its image with zeros, to the input's height and
    width, rounded up to multiples of `PAD_TO`; with ``short_sides`` they are not padded.

    Args:
        preprocess: what the model expects of its input.
        augment: how the images are varied.

    Raises:
        ValueError: tensors cannot be resized with the interpolation of ``preprocess``, or one of
            ``short_sides`` and ``crop_sides`` is greater than the ``long_side`` of ``preprocess``.
    """
    return _TrainTransform(preprocess, augment)


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
        view = whole(self.preprocess.resized(image.size))
        return _normalized(_floats(view.image(pixels, self.mode)), self.preprocess)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.preprocess})"


class _TrainTransform:
    """A random view of image and target, random colours, normalisation.

    Args:
        preprocess: what the model expects of its input.
        augment: how the images are varied.
    """

    def __init__(self, preprocess: Preprocess, augment: JointAugment) -> None:
        self.preprocess = preprocess
        self.augment = augment
        self.mode = _interpolation(preprocess)
        self.short_sides = _multi_scale(preprocess, augment.short_sides)
        self.crop_sides = _multi_scale(preprocess, augment.crop_sides)

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        pixels: Tensor = F.to_image(to_channels(image, self.preprocess.input_size[0]))
        target = converted(target, (image.height, image.width))
        if self.crop_sides and _happens(0.5):
            view = self._crop(_size(pixels))
            pixels, target = view.image(pixels, self.mode), viewed(target, view)
        view = self._last_view(_size(pixels), target)
        pixels = view.image(pixels, self.mode)
        target = viewed(target, view, self.augment.min_size)
        values = _normalized(self._colours(pixels), self.preprocess)
        if isinstance(target, tv_tensors.Mask) and not self.short_sides:
            size = padded_size(*self.preprocess.input_size[1:])
            target = tv_tensors.Mask(pad_to(target.as_subclass(Tensor), size, IGNORED))
            values = pad_to(values, size, 0)
        return values, target

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.preprocess}, {self.augment})"

    def _crop(self, size: tuple[int, int]) -> View:
        """Return a window of a random size in an image of one of the lengths ``crop_sides``."""
        resized = _chosen(self.crop_sides).resized(size[::-1])
        least, most = self.augment.crop_range
        window = [_integer(min(side, least), min(side, most)) for side in resized]
        return View(resized, _window(resized, (window[0], window[1])))

    def _last_view(self, size: tuple[int, int], target: Any) -> View:
        """Return the view that decides the size of the result."""
        flip = _happens(self.augment.hflip)
        if self.short_sides:
            return replace(whole(_chosen(self.short_sides).resized(size[::-1])), flip=flip)
        scale = torch.empty(()).uniform_(*self.augment.scale).item()
        height, width = self.preprocess.resized(size[::-1], scale)
        for _ in range(_TRIES):
            window = _window((height, width), self.preprocess.input_size[1:])
            view = View((height, width), window, flip)
            if self._is_varied(view, target):
                break
        return view

    def _is_varied(self, view: View, target: Any) -> bool:
        """Return whether no class has too large a share of the view of a mask of class numbers."""
        if self.augment.cat_max_ratio == 1 or not isinstance(target, tv_tensors.Mask):
            return True
        mask = view.mask(target).as_subclass(Tensor)
        counts = mask.flatten().bincount(minlength=IGNORED + 1)
        counts[IGNORED] = 0
        return bool(counts.max() < self.augment.cat_max_ratio * counts.sum())

    def _colours(self, pixels: Tensor) -> Tensor:
        """Return the pixels as floats in 0..255, in changed colours."""
        values = _floats(pixels)
        if self.augment.color_jitter:
            jitter(values, self.augment.color_jitter)
        return distort(values) if self.augment.photometric else values


def _interpolation(preprocess: Preprocess) -> InterpolationMode:
    """Return torchvision's constant for the interpolation of tensors."""
    name = preprocess.interpolation
    check_choice("interpolation", name, ("bilinear", "bicubic", "nearest", "nearest-exact"))
    return InterpolationMode(name)


def _multi_scale(preprocess: Preprocess, sides: tuple[int, ...]) -> list[Preprocess]:
    """Return a `Preprocess` for each length of the shorter side."""
    return [replace(preprocess, short_side=side) for side in sides]


def _floats(pixels: Tensor) -> Tensor:
    """Return a copy of the pixels (C, H, W) as floats, contiguous in memory channel by channel."""
    plain = pixels.as_subclass(Tensor)
    return plain.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _normalized(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Normalise float pixels in 0..255; they are overwritten."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) * 255 for values in (preprocess.mean, preprocess.std)
    )
    return pixels.sub_(mean).div_(std)


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]


def _window(size: tuple[int, int], most: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random window of at most the size ``most``."""
    height, width = (min(sides) for sides in zip(size, most, strict=True))
    return _integer(0, size[0] - height), _integer(0, size[1] - width), height, width


def _chosen(options: list[Preprocess]) -> Preprocess:
    return options[_integer(0, len(options) - 1)]


def _integer(least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, ()))


def _happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)
