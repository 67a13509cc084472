"""The data and the model that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from convattn.data import DataSource, Preprocess, open_dataset, preprocess_for
from convattn.data.value_range import named
from convattn.models import create_model
from convattn.runs.card import ModelCard
from convattn.tasks.classification.checkpoint import load_checkpoint
from convattn.tasks.classification.config import TrainConfig
from convattn.tasks.classification.trained_data import difference

_DATA_OPTIONS = (
    "root", "download", "train_split", "val_split", "val_fraction", "split_seed", "max_broken",
    "value_range",
)  # fmt: skip


def build_source(config: TrainConfig) -> DataSource:
    """Open the configuration's data set."""
    return open_dataset(config.data, **data_options(config))


def data_options(config: TrainConfig) -> dict[str, Any]:
    """Return what `open_dataset` needs beside the name."""
    return {key: getattr(config, key) for key in _DATA_OPTIONS}


def build_model(config: TrainConfig, source: DataSource) -> tuple[nn.Module, ModelCard, str | None]:
    """Build the model, with the weights it starts from, and the card that its checkpoints carry.

    Args:
        config: names the model.
        source: gives the number of classes and of channels.

    Returns:
        The model, the card, and what ``init`` was used for: the head too, or why not; and its
        range of values where the data has another.

    Raises:
        ValueError: no such model, it cannot take images of this size, or ``init`` is a checkpoint
            of another one.
    """
    in_chans = config.in_chans or source.in_chans
    arguments = {**_size(config), **_rates(config), **config.model_args}
    model = create_model(
        config.model,
        pretrained=config.pretrained,
        num_classes=source.num_classes,
        in_chans=in_chans,
        **arguments,
    )
    start = None if config.init is None else _start_from(model, config, source)
    preprocess = _preprocess(model, config, source, in_chans)
    _check_forward(model, config.model, preprocess)
    if config.grad_checkpointing:
        cast(Any, model).set_grad_checkpointing(True)
    card = ModelCard(
        model=config.model,
        model_args=arguments,
        class_names=source.class_names,
        preprocess=preprocess,
        value_range=source.value_range,
        data=config.data,
        data_options=data_options(config),
    )
    return model, card, start


def _rates(config: TrainConfig) -> dict[str, float]:
    """Rates that are left to the model unless the configuration sets them."""
    rates = {"drop_rate": config.drop, "drop_path_rate": config.drop_path}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _size(config: TrainConfig) -> dict[str, int]:
    """The input size for models that must know it when they are made, such as ViT."""
    registered = get_pretrained_cfg(config.model)
    if config.img_size is None or registered is None or not registered.fixed_input_size:
        return {}
    return {"img_size": config.img_size}


def _preprocess(
    model: nn.Module, config: TrainConfig, source: DataSource, in_chans: int
) -> Preprocess:
    size = config.img_size or config.model_args.get("img_size")
    return preprocess_for(
        model,
        in_chans=in_chans,
        img_size=size,
        crop_pct=config.crop_pct or source.crop_pct,
        crop_mode=config.crop_mode,
    )


@torch.no_grad()
def _check_forward(model: nn.Module, name: str, preprocess: Preprocess) -> None:
    """Try one blank image, so that a size that does not fit is told before anything is written."""
    try:
        model.eval()(torch.zeros(1, *preprocess.input_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, preprocess.input_size))
        raise ValueError(
            f"{name} cannot take images of {size}: {error} Choose another img_size"
        ) from error
    finally:
        model.train()


def _start_from(model: nn.Module, config: TrainConfig, source: DataSource) -> str:
    """Copy the weights of ``init``; the head only where the classes are the same. Say which."""
    assert config.init is not None
    start = load_checkpoint(config.init)
    if start.card.model != config.model:
        raise ValueError(
            f"init={config.init} holds a {start.card.model}, not a {config.model}; "
            f"add model={start.card.model}"
        )
    own, weights = model.state_dict(), start.model.state_dict()
    before, now = start.card.class_names, source.class_names
    heads = _head(model, weights)
    if sorted(before) == sorted(now):
        number = {name: i for i, name in enumerate(before)}
        order = torch.tensor([number[name] for name in now])
        weights.update({key: weights[key][order] for key in heads})
        said = f"its head is kept, as the {len(now)} classes are the same"
    else:
        weights.update({key: own[key] for key in heads})
        said = f"its head is not kept: {difference(before, now)}"
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of init={config.init} do not fit: {str(error).splitlines()[-1].strip()}. "
            f"It was made with model_args={start.card.model_args} and in_chans="
            f"{start.card.preprocess.input_size[0]}"
        ) from error
    return f"weights of {start.path}; {said}{_other_range(start.card, source)}"


def _other_range(card: ModelCard, source: DataSource) -> str:
    """What to say where weights were trained with another range of values than the data's."""
    if card.value_range == source.value_range:
        return ""
    before = f"with value_range {named(card.value_range)}" if card.value_range else "without one"
    now = f"with value_range {named(source.value_range)}" if source.value_range else "without one"
    return f"; the data is read {now}, the weights were trained {before}"


def _head(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """The weights that have a row for each class."""
    heads = cast(dict[str, Any], model.pretrained_cfg)["classifier"]
    heads = (heads,) if isinstance(heads, str) else heads
    return [key for key in weights if key.startswith(tuple(f"{head}." for head in heads))]
