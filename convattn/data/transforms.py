"""Transforms of a PIL image to a model's input: those of timm, and a random affine map."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform, resolve_model_data_config
from timm.data.transforms import MaybeToTensor
from torch import Tensor, nn
from torchvision import transforms as T

from convattn.data.images import to_channels

ImageTransform = Callable[[Image.Image], Tensor]
Transform = Callable[[Image.Image, Any], tuple[Tensor, Any]]  # image and target together


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its input; it is saved with the weights.

    Args:
        input_size: channels, height, width.
        mean: mean of each channel, for values in 0..1.
        std: standard deviation of each channel.
        interpolation: "bilinear", "bicubic", ...
        crop_pct: side of the centre crop relative to the resized image.
        crop_mode: "center", "squash" or "border".
        short_side: length of the shorter side of a resized image of any size; for joint transforms,
            which do not crop.
        long_side: largest length of its longer side; without ``short_side`` its length.

    Raises:
        ValueError: an image has neither 1 nor 3 channels, or the lengths of the sides are not
            whole numbers above 0, or ``long_side`` is less than ``short_side``.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    short_side: int | None = None
    long_side: int | None = None

    def __post_init__(self) -> None:
        if self.input_size[0] not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, got in_chans={self.input_size[0]}")
        for name in ("short_side", "long_side"):
            side = getattr(self, name)
            if side is not None and not (type(side) is int and side > 0):
                raise ValueError(f"{name}={side!r} must be a whole number of pixels above 0")
        if self.short_side and self.long_side and self.long_side < self.short_side:
            raise ValueError(
                f"long_side={self.long_side} is less than short_side={self.short_side}; give the "
                "shorter length to short_side"
            )

    def resized(self, size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Return the size to which joint transforms resize an image, without padding.

        The ratio of the sides is kept. With ``short_side`` the shorter side gets this length, or
        the longer side gets the length ``long_side`` where it would be longer. Otherwise, the size
        is the largest one that fits into ``input_size``.

        Args:
            size: width and height of the image.
            scale: factor of both lengths, for random sizes in training.

        Returns:
            Height and width of the resized image.
        """
        width, height = size
        bounds = [(self.short_side, min(size)), (self.long_side, max(size))]
        if self.short_side is None and self.long_side is None:
            bounds = [(self.input_size[1], height), (self.input_size[2], width)]
        ratio = scale * min(bound / side for bound, side in bounds if bound is not None)
        return max(1, round(height * ratio)), max(1, round(width * ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return the values in types that JSON has, without those that are None.

        Earlier versions, which have no ``short_side`` and ``long_side``, can then read the result.
        """
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
            if v is not None
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Preprocess:
        """Return the `Preprocess` of a dict that `to_dict` returned."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return Preprocess(**plain)


@dataclass(frozen=True)
class Augment:
    """How training images are augmented; the names are those of timm's `create_transform`.

    Args:
        scale: area of the random crop relative to the image, (least, most).
        ratio: width of the random crop divided by its height, (least, most).
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of the change of brightness, contrast and saturation.
        auto_augment: a policy in timm's notation, e.g. "rand-m9-mstd0.5-inc1".
        erasing: probability of erasing a rectangle.
        degrees: largest random rotation, in degrees.
        translate: largest random shift relative to the size of the image.
        zoom: random scale factor, (least, most).
        shear: largest random shear, in degrees.
        background: grey level around a transformed image; None for the model's mean colour.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    auto_augment: str | None = None
    erasing: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    background: int | None = None


def preprocess_for(
    model: nn.Module,
    *,
    in_chans: int,
    img_size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
) -> Preprocess:
    """Return what ``model`` expects of its input, by its timm configuration.

    Args:
        model: a timm model.
        in_chans: channels of the images; with one channel the statistics of RGB are averaged.
        img_size: height and width; by default the model's.
        crop_pct: see `Preprocess`; by default the model's.
        crop_mode: see `Preprocess`; by default the model's.
    """
    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    mean, std = (_for_channels(config[key], in_chans) for key in ("mean", "std"))
    return Preprocess(
        input_size=(in_chans, img_size or height, img_size or width),
        mean=mean,
        std=std,
        interpolation=config["interpolation"],
        crop_pct=crop_pct or config["crop_pct"],
        crop_mode=crop_mode or config["crop_mode"],
    )


def eval_transform(preprocess: Preprocess) -> ImageTransform:
    """Return the fixed transform of evaluation: resize, crop, normalise."""
    return _Steps(preprocess.input_size[0], [create_transform(**_common(preprocess))])


def train_transform(preprocess: Preprocess, augment: Augment) -> ImageTransform:
    """Return the random transform of training."""
    crop, vary, finish = _create_training_transform(preprocess, augment)
    for policy in vary.transforms:
        for op in getattr(policy, "ops", ()):
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize
    return _Steps(preprocess.input_size[0], [crop, *_affine(preprocess, augment), vary, finish])


class ImageOnly:
    """A transform of image and target that leaves the target unchanged.

    Args:
        transform: the transform of the image.
    """

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        """Return the transformed image and the target as it is."""
        return self.transform(image), target

    def __repr__(self) -> str:
        return repr(self.transform)


def _create_training_transform(preprocess: Preprocess, augment: Augment) -> Any:
    try:
        return create_transform(
            **_common(preprocess),
            is_training=True,
            separate=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=(augment.color_jitter,) * 3,
            auto_augment=augment.auto_augment,
            re_prob=augment.erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError) as error:
        if augment.auto_augment is None:
            raise
        raise ValueError(
            f"timm has no policy auto_augment={augment.auto_augment} ({error}); write it like "
            "rand-m9-mstd0.5-inc1, augmix-m3-w3, original or 3a"
        ) from error


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Do what timm's function does, with at least 1 bit: Pillow 13 refuses 0 bits."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


class _Steps:
    """Conversion to grey or RGB, then the steps; a class, so that worker processes can load it."""

    def __init__(self, channels: int, steps: list[Callable[[Any], Any]]) -> None:
        self.channels = channels
        self.steps = [_merge_last_steps(step) for step in steps]

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = to_channels(image, self.channels)
        for step in self.steps:
            value = step(value)
        return value

    def __repr__(self) -> str:
        return " -> ".join(map(str, self.steps))


class _NormalizedTensor:
    """Conversion to a tensor and normalisation with fewer copies, bit-equal to torchvision's.

    Args:
        normalize: torchvision's transform, which has the mean and the standard deviation.
    """

    def __init__(self, normalize: T.Normalize) -> None:
        self.mean = torch.as_tensor(normalize.mean).view(-1, 1, 1)
        self.std = torch.as_tensor(normalize.std).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
        values = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        return values.div_(255).sub_(self.mean).div_(self.std)

    def __repr__(self) -> str:
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return f"{type(self).__name__}(mean={mean}, std={std})"


def _merge_last_steps(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Merge the conversion to a tensor and the normalisation of a sequence of transforms."""
    if isinstance(step, T.Compose):
        parts = step.transforms
        for start, (first, second) in enumerate(itertools.pairwise(parts)):
            if isinstance(first, MaybeToTensor) and isinstance(second, T.Normalize):
                merged = _NormalizedTensor(second)
                return T.Compose([*parts[:start], merged, *parts[start + 2 :]])
    return step


def _common(preprocess: Preprocess) -> dict[str, Any]:
    values = asdict(preprocess)
    del values["short_side"], values["long_side"]  # joint transforms only
    if values["input_size"][1] != values["input_size"][2] and values["crop_mode"] == "squash":
        values["crop_mode"] = "center"  # timm's squash is for squares only
    return values


def _affine(preprocess: Preprocess, augment: Augment) -> list[Callable[[Any], Any]]:
    if not (augment.degrees or augment.translate or augment.shear or augment.zoom != (1.0, 1.0)):
        return []
    fill = [255 * m for m in preprocess.mean]
    if augment.background is not None:
        fill = [float(augment.background)] * len(preprocess.mean)
    return [
        T.RandomAffine(
            augment.degrees,
            translate=(augment.translate, augment.translate),
            scale=augment.zoom,
            shear=augment.shear,
            interpolation=T.InterpolationMode.BILINEAR,
            fill=fill,
        )
    ]


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels
