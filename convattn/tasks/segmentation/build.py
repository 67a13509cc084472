"""The segmenter of a configuration, with its initial weights and its card."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from convattn.checks import check_choice
from convattn.data import DataSource, Preprocess, preprocess_for
from convattn.names import listed
from convattn.runs.card import ModelCard
from convattn.tasks.segmentation.config import SegmentationConfig
from convattn.tasks.segmentation.models import Segmenter, build_segmenter
from convattn.training.config import data_options
from convattn.training.dense import build_dense, check_forward, model_settings, start_from

MODEL_SETTINGS = (
    "channels", "head_channels", "pool_scales", "dropout", "auxiliary", "norm_maps",
)  # fmt: skip
_METHOD_OF = {"head_channels": "semantic_fpn", "pool_scales": "upernet"}  # of no other method


def build_model(
    config: SegmentationConfig, source: DataSource
) -> tuple[Segmenter, ModelCard, list[str]]:
    """Build the segmenter with its initial weights, and its card.

    Args:
        config: has the settings of the model.
        source: has the classes and the number of channels.

    Returns:
        The model; the card of its checkpoints; notes on the weights that ``init`` or
        ``pretrained`` loaded, and on settings of the recipe that were left out.

    Raises:
        ValueError: an unknown model or class, a setting that the model does not have, images of
            this size do not fit it, or ``init`` is a checkpoint of another model.
    """
    in_chans = config.in_chans or source.in_chans
    settings = _model_settings(config, source)
    build = partial(
        build_segmenter,
        config.method,
        config.model,
        source.num_classes,
        in_chans=in_chans,
        **settings,
    )
    model, arguments, notes = build_dense(config, build)
    assert isinstance(model, Segmenter)
    if config.init is not None:
        is_of_classes = model.is_of_classes
        notes.insert(0, start_from(model, config, source, is_of_classes=is_of_classes))
    preprocess = _preprocess(model, config, in_chans)
    check_forward(model, config, preprocess)
    card = ModelCard(
        task=config.task,
        method=config.method,
        model=config.model,
        model_args={**settings, "backbone_args": arguments},
        class_names=source.class_names,
        preprocess=preprocess,
        value_range=source.value_range,
        data=config.data,
        data_options=data_options(config),
    )
    return model, card, notes


def rebuild(card: ModelCard) -> Segmenter:
    """Return the segmenter that a card describes, without trained weights."""
    return build_segmenter(
        card.method,
        card.model,
        len(card.class_names),
        in_chans=card.preprocess.input_size[0],
        **card.model_args,
    )


def _model_settings(config: SegmentationConfig, source: DataSource) -> dict[str, Any]:
    """Return the arguments of `build_segmenter` that a card holds, in types that JSON has."""
    names = list(source.class_names)
    for name in config.ignored_classes:
        check_choice("ignored_classes", name, names)
    if len(set(config.ignored_classes)) >= len(names):
        raise ValueError(
            f"ignored_classes={list(config.ignored_classes)} are all classes of the data "
            f"({listed(names, 5)}); leave at least one class"
        )
    known = [key for key in MODEL_SETTINGS if _METHOD_OF.get(key, config.method) == config.method]
    settings = model_settings(config, MODEL_SETTINGS, known)
    return {
        **{key: list(x) if isinstance(x, tuple) else x for key, x in settings.items()},
        "ignored": sorted({names.index(name) for name in config.ignored_classes}),
        "inference": {
            "mode": config.inference,
            "window": config.window_side,
            "stride": config.window_stride,
            "flip": config.flip,
        },
    }


def _preprocess(model: Segmenter, config: SegmentationConfig, in_chans: int) -> Preprocess:
    """Return the input: crops in training, images of a shorter side in evaluation."""
    short, long = config.sides
    of_backbone = preprocess_for(model.backbone.body, in_chans=in_chans, img_size=config.crop_side)
    return replace(of_backbone, interpolation="bilinear", short_side=short, long_side=long)
