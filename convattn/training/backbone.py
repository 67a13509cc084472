"""The backbone of a configuration, built with the arguments that the backbone supports."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, is_model
from torch import Tensor, nn

from convattn.models import create_model
from convattn.names import first_of, shown
from convattn.training.config import RunConfig


def build_backbone(
    config: RunConfig, *, num_classes: int, in_chans: int
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """Build the model of a configuration.

    A setting of a recipe that the model does not support, such as a drop path rate, is left out;
    the same setting from the user is an error.

    Args:
        config: has the name of the model and its arguments.
        num_classes: number of outputs of the head.
        in_chans: number of channels of the images.

    Returns:
        The model, its arguments except ``num_classes`` and ``in_chans``, and a sentence for each
        setting that was left out.

    Raises:
        ValueError: an unknown model, a setting of the user that the model does not have, an entry
            of ``model_args`` that does not fit it, or there are no weights to download.
    """

    def create(**arguments: Any) -> nn.Module:
        return create_model(
            config.model,
            pretrained=config.pretrained,
            num_classes=num_classes,
            in_chans=in_chans,
            **arguments,
        )

    return build_supported(config, create)


def build_supported(
    config: RunConfig, create: Callable[..., nn.Module]
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """Build a model with the settings of a configuration that its backbone supports.

    Args:
        config: has the name of the backbone and its arguments.
        create: builds the model from the arguments of the backbone.

    Returns:
        The model, the arguments, and a sentence for each setting that was left out.

    Raises:
        ValueError: as `build_backbone`.
    """
    _check_tag(config.model)
    rates, notes = _rates(config), []
    while True:
        arguments = {**_size(config), **dict(rates.values()), **config.model_args}
        try:
            model = create(**arguments)
            break
        except Exception as error:
            key = _refused(str(error), rates) if isinstance(error, TypeError) else None
            if key is None:
                raise _not_built(config, error) from error
            notes.append(_left_out(config, key))
            del rates[key]
    if config.grad_checkpointing:
        notes += _checkpoint_gradients(model, config)
    return model, arguments, notes


def misfit(config: RunConfig, reason: object) -> ValueError:
    """Return the error that the arguments of ``model_args`` do not fit the model."""
    given = ", ".join(f"model_args.{key}={value}" for key, value in config.model_args.items())
    verb = "does" if len(config.model_args) == 1 else "do"
    return ValueError(f"{shown(given)} {verb} not fit {config.model}: {_first_line(reason)}")


@torch.no_grad()
def check_batch(
    model: nn.Module,
    images: int,
    input_size: Sequence[int],
    forward: Callable[[nn.Module, Tensor], Any] | None = None,
) -> None:
    """Check that batch norms can be trained with batches of this many images.

    A batch norm needs more than one value per channel. Where the batch has a single image, one
    training step of a copy of the model on a blank image shows whether each map is large enough.

    Args:
        model: on the CPU.
        images: images per batch and device.
        input_size: channels, height and width.
        forward: computes a model in training mode for images; None calls the model.

    Raises:
        ValueError: a batch norm sees one value per channel.
    """
    if images > 1:
        return
    trial = copy.deepcopy(model).train()
    try:
        with torch.random.fork_rng(devices=[]):
            image = torch.zeros(1, *input_size)
            trial(image) if forward is None else forward(trial, image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        size = "x".join(map(str, input_size))
        raise ValueError(
            f"batches of 1 image of {size} are too small for the batch norms of the model, which "
            "need more than 1 value per channel: set batch_size=2 or more, or a larger img_size"
        ) from error


def _check_tag(model: str) -> None:
    """Raise `ValueError` where a model is known and the tag of its weights, after ".", is not."""
    name, dot, tag = model.partition(".")
    if not dot or ":" in name or "/" in name or not is_model(name):
        return
    tags = [tag for tag in get_arch_pretrained_cfgs(name) if tag]
    tags = [known.partition(".")[2] for known in tags if "." in known]
    if tag not in tags:
        known = f"; known: {first_of(tags)}" if tags else ""
        raise ValueError(
            f"model={shown(model)}: {name} has no weights named {shown(tag)!r}; write "
            f"model={name}{known}"
        )


def _not_built(config: RunConfig, error: Exception) -> Exception:
    """Return the error of a model that cannot be built, in terms of the settings."""
    reason = _first_line(error)
    if reason.startswith("unknown model"):
        return ValueError(reason)
    if config.pretrained and _has_no_weights(config):
        return ValueError(
            f"no weights of {config.model} can be downloaded: write init=RUN_OR_CHECKPOINT in "
            "place of pretrained=true, or leave it out for random weights"
        )
    if isinstance(error, OSError):
        return ValueError(f"the weights of model={shown(config.model)} cannot be read: {reason}")
    if config.model_args:
        return misfit(config, reason)
    return ValueError(f"model={shown(config.model)} cannot be built: {reason}")


def _has_no_weights(config: RunConfig) -> bool:
    registered = get_pretrained_cfg(config.model)
    given = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"} & {*config.model_args}
    return registered is not None and not registered.has_weights and not given


def _first_line(reason: object) -> str:
    """Return the first line of a reason, of an exception without text its type."""
    text = str(reason).strip() or type(reason).__name__
    return shown(text.splitlines()[0].removesuffix("."))


def _size(config: RunConfig) -> dict[str, int]:
    """Return the argument ``img_size`` for models with a fixed input size, such as ViT."""
    registered = get_pretrained_cfg(config.model)
    if config.img_size is None or registered is None or not registered.fixed_input_size:
        return {}
    return {"img_size": config.img_size}


def _rates(config: RunConfig) -> dict[str, tuple[str, float]]:
    """Return the rates that the configuration sets: the model's argument and the value."""
    found = {
        key: (name, getattr(config, key))
        for key, name in config.model_arguments.items()
        if key != "img_size"
    }
    return {key: pair for key, pair in found.items() if pair[1] is not None}


def _refused(message: str, rates: dict[str, tuple[str, float]]) -> str | None:
    """Return the rate whose argument a model does not have, by the message of its `TypeError`."""
    for key, (name, _) in rates.items():
        if re.search(rf"argument(\(s\): \[)? ?'{name}'", message):
            return key
    return None


def _left_out(config: RunConfig, key: str) -> str:
    """Return a note that the rate of a recipe is left out; raise if the user gave the rate."""
    name, value = config.model_arguments[key], getattr(config, key)
    if key in config.model_fields_set:
        raise ValueError(
            f"{config.model} has no argument {name}, which {key}={value} sets; write {key}=null"
        )
    return f"{key}={value} is left out: {config.model} has no argument {name}"


def _checkpoint_gradients(model: nn.Module, config: RunConfig) -> list[str]:
    """Turn gradient checkpointing on; return a note if the model does not support it, or raise."""
    try:
        cast(Any, model).set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError) as error:
        if "grad_checkpointing" in config.model_fields_set:
            raise ValueError(
                f"{config.model} does not support gradient checkpointing; set "
                "grad_checkpointing=false"
            ) from error
        return [f"grad_checkpointing is left out: {config.model} does not support it"]
    return []
