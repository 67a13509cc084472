"""The model of a configuration, with its initial weights and its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from convattn.data import DataSource, Preprocess, preprocess_for
from convattn.names import counted
from convattn.runs.card import ModelCard
from convattn.tasks.classification.config import TrainConfig
from convattn.tasks.table import load_checkpoint
from convattn.training.backbone import build_backbone, misfit
from convattn.training.config import data_options
from convattn.training.trained_data import difference, other_range


def build_model(config: TrainConfig, source: DataSource) -> tuple[nn.Module, ModelCard, list[str]]:
    """Build the model with its initial weights, and its card.

    Args:
        config: has the settings of the model.
        source: has the number of classes and of channels.

    Returns:
        The model; the card of its checkpoints; notes on the weights that ``init`` or
        ``pretrained`` loaded, on a new head, and on settings of the recipe that were left out.

    Raises:
        ValueError: an unknown model, a setting that it does not have, images of this size do not
            fit it, or ``init`` is a checkpoint of another model.
    """
    in_chans = config.in_chans or source.in_chans
    model, arguments, notes = build_backbone(
        config, num_classes=source.num_classes, in_chans=in_chans
    )
    if config.init is not None:
        notes.insert(0, _start_from(model, config, source, in_chans, arguments))
    elif config.pretrained:
        notes.insert(0, _published(model, config, source))
    try:
        preprocess = _preprocess(model, config, source, in_chans)
    except AttributeError as error:  # it is no classifier of timm, such as a feature extractor
        raise _not_classifier(config, type(model).__name__) from error
    _check_forward(model, config, preprocess, source.num_classes)
    card = ModelCard(
        model=config.model,
        model_args=arguments,
        class_names=source.class_names,
        preprocess=preprocess,
        value_range=source.value_range,
        data=config.data,
        data_options=data_options(config),
    )
    return model, card, notes


def _preprocess(
    model: nn.Module, config: TrainConfig, source: DataSource, in_chans: int
) -> Preprocess:
    size = config.img_size or config.model_args.get("img_size")
    return preprocess_for(
        model,
        in_chans=in_chans,
        img_size=size,
        crop_pct=source.crop_pct if config.crop_pct is None else config.crop_pct,
        crop_mode=config.crop_mode,
    )


@torch.no_grad()
def _check_forward(
    model: nn.Module, config: TrainConfig, preprocess: Preprocess, num_classes: int
) -> None:
    """Compute one blank image: what does not fit is an error before anything is written."""
    try:
        scores = model.eval()(torch.zeros(1, *preprocess.input_size))
    except Exception as error:
        size = "x".join(map(str, preprocess.input_size))
        if config.model_args:
            raise misfit(config, f"with an image of {size}, {error}") from error
        raise ValueError(
            f"{config.model} does not support images of {size}; choose another img_size ({error})"
        ) from error
    finally:
        model.train()
    if not isinstance(scores, Tensor):
        raise _not_classifier(config, type(scores).__name__)
    if scores.shape != (1, num_classes):
        raise _not_classifier(config, f"shape {tuple(scores.shape)}")


def _not_classifier(config: TrainConfig, found: str) -> ValueError:
    reason = f"its output is no score per class, but {found}"
    if config.model_args:
        return misfit(config, reason)
    return ValueError(f"model={config.model} is no classifier: {reason}; choose another model")


def _published(model: nn.Module, config: TrainConfig, source: DataSource) -> str:
    """Return a note on the pretrained weights, and on whether their head is used."""
    before = cast(dict[str, Any], model.pretrained_cfg).get("num_classes")
    if before == source.num_classes:
        head = f"the head is kept, as the data has {before} classes too"
    else:
        head = f"the head is new: the weights have {before} classes, the data {source.num_classes}"
    return f"pretrained weights of {config.model} loaded; {head}"


def _start_from(
    model: nn.Module,
    config: TrainConfig,
    source: DataSource,
    in_chans: int,
    arguments: dict[str, Any],
) -> str:
    """Load the weights of ``init``, the head only if the classes are the same.

    Returns:
        How many tensors were loaded, and whether the head is kept or new.
    """
    assert config.init is not None
    start = load_checkpoint(config.init)
    if start.card.model != config.model:
        raise ValueError(
            f"init={config.init} holds the weights of {start.card.model}, not of {config.model}; "
            f"write model={start.card.model}"
        )
    channels = start.card.preprocess.input_size[0]
    if channels != in_chans:
        raise ValueError(
            f"init={config.init} holds the weights of a model for images with "
            f"{counted(channels, 'channel')}, not {in_chans}; write in_chans={channels}"
        )
    own, weights = model.state_dict(), start.model.state_dict()
    before, now = start.card.class_names, source.class_names
    heads, total = _head(model, weights), len(weights)
    if sorted(before) == sorted(now):
        number = {name: i for i, name in enumerate(before)}
        order = torch.tensor([number[name] for name in now])
        weights.update({key: weights[key][order] for key in heads})
        loaded = f"all {total} tensors"
        head = f"the head is kept, as the {len(now)} classes are the same"
    else:
        weights.update({key: own[key] for key in heads})
        loaded = f"{total - len(heads)} of {total} tensors"
        head = f"the head is new: {difference(before, now)}"
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().removesuffix(".")
        fix = _other_arguments(start.card.model_args, arguments)
        raise ValueError(
            f"the weights of init={config.init} do not fit {config.model}"
            + (f"; write {fix}" if fix else f": {reason}")
        ) from error
    return f"{loaded} of {start.path} loaded; {head}{other_range(start.card, source)}"


def _other_arguments(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the settings that give a model the arguments that the weights were trained with."""
    words = []
    for key in {**before, **now}:
        value = before.get(key)
        if value != now.get(key):
            setting = key if key == "img_size" else f"model_args.{key}"
            shown_value = "null" if value is None else str(value).replace(" ", "")
            words.append(f"{setting}={shown_value}")
    return " ".join(words)


def _head(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the head's tensors, whose first dimension is the classes."""
    heads = cast(dict[str, Any], model.pretrained_cfg)["classifier"]
    heads = (heads,) if isinstance(heads, str) else heads
    return [key for key in weights if key.startswith(tuple(f"{head}." for head in heads))]
