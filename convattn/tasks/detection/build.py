"""The size and the augmentation of the images, as the settings of a detector define them."""

from __future__ import annotations

from dataclasses import replace

from convattn.data import DataSource, JointAugment, Preprocess, padded_size, preprocess_for
from convattn.models.dense import DenseModel
from convattn.tasks.detection.config import DetectionConfig

# Settings that have no effect with img_size.
_SIZES = ("short_side", "long_side", "short_sides", "crop_sides", "crop_range")


def augmentation(config: DetectionConfig, source: DataSource) -> JointAugment:
    """Return the augmentation of training images; a horizontal flip only if the data allows it."""
    sides = () if config.img_size else config.short_sides or (config.short_side,)
    return JointAugment(
        scale=config.scale,
        hflip=(0.5 if source.hflip else 0.0) if config.hflip is None else config.hflip,
        color_jitter=config.color_jitter,
        photometric=config.photometric,
        min_size=config.min_size,
        short_sides=sides,
        crop_sides=() if config.img_size else config.crop_sides,
        crop_range=config.crop_range,
    )


def check_sizes(config: DetectionConfig) -> None:
    """Raise `ValueError` if the user gave a size that has no effect."""
    given = {key: getattr(config, key) for key in _SIZES if key in config.model_fields_set}
    words = [f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in given.items() if v]
    if config.img_size and words:
        raise ValueError(
            f"img_size={config.img_size} and {words[0]} contradict each other: with img_size, "
            "images are fitted into a square; leave one out, or set img_size=null"
        )
    if not config.crop_sides and "crop_range" in config.model_fields_set:
        raise ValueError(
            f"crop_range={list(config.crop_range)} needs crop_sides, such as "
            "crop_sides=[400,500,600]; without them, no window is cut out"
        )
    if not config.img_size and "scale" in config.model_fields_set:
        raise ValueError(
            f"scale={list(config.scale)} needs img_size; without it, short_sides=[480,640,800] "
            "chooses the size of a training image"
        )


def preprocess(model: DenseModel, config: DetectionConfig, in_chans: int) -> Preprocess:
    """Return the input: a square of ``img_size``, or images of a length of the shorter side."""
    body = model.backbone.body
    of_backbone = preprocess_for(body, in_chans=in_chans, img_size=config.img_size)
    if config.img_size:
        return replace(of_backbone, interpolation="bilinear")
    return replace(
        of_backbone,
        interpolation="bilinear",
        input_size=(in_chans, *padded_size(config.short_side, config.long_side)),
        short_side=config.short_side,
        long_side=config.long_side,
    )
