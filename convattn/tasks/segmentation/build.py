"""The model, the images and the augmentation, as the settings of a segmenter define them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convattn.checks import check_choice
from convattn.data import DataSource, JointAugment, Preprocess, preprocess_for
from convattn.models.dense import DenseModel
from convattn.names import listed
from convattn.tasks.segmentation.config import SegmentationConfig
from convattn.training.dense import chosen_settings

MODEL_SETTINGS = (
    "channels", "head_channels", "pool_scales", "dropout", "auxiliary", "norm_maps",
)  # fmt: skip
_METHOD_OF = {"head_channels": "semantic_fpn", "pool_scales": "upernet"}  # of no other method


def model_settings(config: SegmentationConfig, source: DataSource) -> dict[str, Any]:
    """Return the arguments of `build_segmenter` that the configuration sets, as JSON values."""
    names = list(source.class_names)
    for name in config.ignored_classes:
        check_choice("ignored_classes", name, names)
    if len(set(config.ignored_classes)) >= len(names):
        raise ValueError(
            f"ignored_classes={list(config.ignored_classes)} are all classes of the data "
            f"({listed(names, 5)}); leave at least one class"
        )
    known = [key for key in MODEL_SETTINGS if _METHOD_OF.get(key, config.method) == config.method]
    return {
        **chosen_settings(config, MODEL_SETTINGS, known),
        "ignored": sorted({names.index(name) for name in config.ignored_classes}),
        "inference": {
            "mode": config.inference,
            "window": config.window_side,
            "stride": config.window_stride,
            "flip": config.flip,
        },
    }


def preprocess(model: DenseModel, config: SegmentationConfig, in_chans: int) -> Preprocess:
    """Return the input: crops in training, images of a shorter side in evaluation."""
    short, long = config.sides
    of_backbone = preprocess_for(model.backbone.body, in_chans=in_chans, img_size=config.crop_side)
    return replace(of_backbone, interpolation="bilinear", short_side=short, long_side=long)


def augmentation(config: SegmentationConfig, source: DataSource) -> JointAugment:
    """Return the augmentation of training images; a horizontal flip only if the data allows it."""
    return JointAugment(
        scale=config.scale,
        hflip=(0.5 if source.hflip else 0.0) if config.hflip is None else config.hflip,
        color_jitter=0.0,
        cat_max_ratio=config.cat_max_ratio,
        photometric=config.photometric,
    )
