"""The detector of a configuration, with its initial weights and its card."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from convattn.data import DataSource, JointAugment, Preprocess, padded_size, preprocess_for
from convattn.runs.card import ModelCard
from convattn.tasks.detection.config import MODEL_SETTINGS, DetectionConfig
from convattn.tasks.detection.models import Detector, build_detector, method_arguments
from convattn.training.config import data_options
from convattn.training.dense import build_dense, check_forward, model_settings, start_from

# Settings that have no effect with img_size.
_SIZES = ("short_side", "long_side", "short_sides", "crop_sides", "crop_range")


def build_model(
    config: DetectionConfig, source: DataSource
) -> tuple[Detector, ModelCard, list[str]]:
    """Build the detector with its initial weights, and its card.

    Args:
        config: has the settings of the model.
        source: has the classes and the number of channels.

    Returns:
        The model; the card of its checkpoints; notes on the weights that ``init`` or
        ``pretrained`` loaded, and on settings of the recipe that were left out.

    Raises:
        ValueError: an unknown model, a setting that it does not have, images of this size do not
            fit it, or ``init`` is a checkpoint of another model.
    """
    in_chans = config.in_chans or source.in_chans
    _check_sizes(config)
    settings = model_settings(config, MODEL_SETTINGS, method_arguments(config.method))
    build = partial(
        build_detector,
        config.method,
        config.model,
        source.num_classes,
        in_chans=in_chans,
        **settings,
    )
    model, arguments, notes = build_dense(config, build)
    assert isinstance(model, Detector)
    card = ModelCard(
        task=config.task,
        method=config.method,
        model=config.model,
        model_args={**settings, "backbone_args": arguments},
        class_names=source.class_names,
        preprocess=_preprocess(model, config, in_chans),
        value_range=source.value_range,
        data=config.data,
        data_options=data_options(config),
    )
    if config.init is not None:
        per_class = _tensors_per_class(card)
        text = start_from(model, config, source, is_of_classes=lambda name: name in per_class)
        notes.insert(0, text)
    check_forward(model, config, card.preprocess)
    return model, card, notes


def rebuild(card: ModelCard) -> Detector:
    """Return the detector that a card describes, without trained weights."""
    return _build(card, len(card.class_names))


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


def _build(card: ModelCard, num_classes: int) -> Detector:
    in_chans = card.preprocess.input_size[0]
    return build_detector(
        card.method, card.model, num_classes, in_chans=in_chans, **card.model_args
    )


def _check_sizes(config: DetectionConfig) -> None:
    """Raise `ValueError` if the user gave a size that has no effect."""
    given = {key: getattr(config, key) for key in _SIZES if key in config.model_fields_set}
    words = [f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in given.items() if v]
    if config.img_size and words:
        raise ValueError(
            f"img_size={config.img_size} and {words[0]} contradict each other: with img_size, "
            "images are fitted into a square; leave one out, or set img_size=null"
        )
    if not config.img_size and "scale" in config.model_fields_set:
        raise ValueError(
            f"scale={list(config.scale)} needs img_size; without it, short_sides=[480,640,800] "
            "chooses the size of a training image"
        )


def _preprocess(model: Detector, config: DetectionConfig, in_chans: int) -> Preprocess:
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


def _tensors_per_class(card: ModelCard) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        one, two = (_build(card, count).state_dict() for count in (1, 2))
    return {name for name, value in one.items() if value.shape != two[name].shape}
