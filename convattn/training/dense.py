"""Detectors and segmenters of a configuration, and the weights that they start from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convattn.data import DataSource, Preprocess, padded_size
from convattn.models import create_model
from convattn.models.dense import DenseModel
from convattn.models.official import read_official
from convattn.names import counted, first_of, shown
from convattn.runs.card import ModelCard
from convattn.runs.weights import find_checkpoint, has_card, read_weights
from convattn.training.backbone import build_supported
from convattn.training.config import RunConfig
from convattn.training.trained_data import difference, other_range

_TRIAL_SIDE = 256  # height and width at most of the blank image that is computed at the start
_FOREIGN = (".pth", ".pt", ".bin")  # files of authors, which have no card


def build_dense(
    config: RunConfig, build: Callable[..., DenseModel]
) -> tuple[DenseModel, dict[str, Any], list[str]]:
    """Build a detector or a segmenter, with the published weights of timm if they are asked for.

    Args:
        config: has the name of the backbone and its arguments.
        build: builds the model; its argument ``backbone_args`` holds the arguments of the backbone.

    Returns:
        The model, the arguments of the backbone without ``pretrained``, and sentences on the
        weights and on settings that were left out.

    Raises:
        ValueError: the backbone cannot be built with these settings.
    """
    weights = {"pretrained": True} if config.pretrained else {}

    def create(**arguments: Any) -> DenseModel:
        return build(backbone_args={**arguments, **weights})

    model, arguments, notes = build_supported(config, create)
    assert isinstance(model, DenseModel)
    if weights:
        text = f"pretrained weights of {config.model} loaded into the backbone; all else is new"
        notes.insert(0, text)
    return model, arguments, notes


def model_settings(
    config: RunConfig, names: Sequence[str], known: Collection[str]
) -> dict[str, Any]:
    """Return the arguments of a method's model that the configuration sets.

    Args:
        config: has the settings; those that are None keep the default of the method.
        names: settings that are arguments of some method's model.
        known: arguments that this method's model has; other settings of a recipe are left out.

    Raises:
        ValueError: the user gave a setting that the method does not have.
    """
    values = {key: value for key in names if (value := getattr(config, key)) is not None}
    for key, value in values.items():
        if key not in known and key in config.model_fields_set:
            text = shown(list(value) if isinstance(value, tuple) else value)
            raise ValueError(
                f"{getattr(config, 'method', config.task)} has no setting {key}, which "
                f"{key}={text} sets; leave it out"
            )
    return {key: value for key, value in values.items() if key in known}


@torch.no_grad()
def check_forward(model: DenseModel, config: RunConfig, preprocess: Preprocess) -> None:
    """Compute a blank image: what does not fit is an error before anything is written.

    Args:
        model: is in training mode afterwards.
        config: has the names for the message.
        preprocess: has the size of the input; the image has sides of at most 256 pixels.

    Raises:
        ValueError: the model does not support the images.
    """
    channels, *sides = preprocess.input_size
    size = padded_size(*(min(side, _TRIAL_SIDE) for side in sides))
    try:
        model.eval()(torch.zeros(1, channels, *size))
    except Exception as error:
        name = f"{getattr(config, 'method', config.task)} with {config.model}"
        raise ValueError(
            f"{name} does not support images of {'x'.join(map(str, size))}; choose another "
            f"img_size, or another model ({error})"
        ) from error
    finally:
        model.train()


def start_from(
    model: DenseModel,
    config: RunConfig,
    source: DataSource,
    *,
    is_of_classes: Callable[[str], bool],
) -> str:
    """Load the weights of ``init``.

    A checkpoint of the same task, method and backbone gives all tensors, those that belong to
    classes only if the classes are the same. Any other checkpoint, such as that of a classifier or
    a file of a backbone's authors, gives the backbone.

    Args:
        model: is changed in place.
        config: has ``init``.
        source: has the names of the classes.
        is_of_classes: returns whether the tensor of a name depends on the number of classes.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: nothing is at the path of ``init``.
        ValueError: the file has no weights of this backbone.
    """
    path = Path(str(config.init)).expanduser()
    if path.is_file() and _is_foreign(path):
        return _load_backbone(model, config, read_official(_classifier(model), path), path)
    file = find_checkpoint(path)
    weights, card = read_weights(file)
    if card.model != config.model:
        raise ValueError(
            f"init={shown(config.init)} holds the weights of {card.model}, not of {config.model}; "
            f"write model={card.model}"
        )
    same = (card.task, card.method) == (config.task, getattr(config, "method", ""))
    if same:
        text = _load_all(model, config, weights, file, card, source, is_of_classes)
    else:
        text = _load_backbone(model, config, _of_backbone(weights), file)
    return text + other_range(card, source)


def _load_backbone(
    model: DenseModel, config: RunConfig, weights: Mapping[str, Tensor], file: Path
) -> str:
    try:
        names = model.load_backbone(weights)
    except ValueError as error:
        raise ValueError(f"init={shown(config.init)}: {error}") from error
    if len(names.missing) > len(names.loaded):
        raise ValueError(
            f"init={shown(config.init)} does not hold the weights of {config.model}: it lacks "
            f"{len(names.missing)} of {len(names.missing) + len(names.loaded)} tensors, such as "
            f"{first_of(names.missing, 3)}"
        )
    parts = [
        f"{counted(len(names.loaded), 'tensor')} of {shown(file)} loaded into the backbone of "
        f"{len(names.loaded) + len(names.missing)}"
    ]
    if names.missing:
        parts.append(f"not in the file: {first_of(names.missing, 3)}")
    if names.unexpected:
        parts.append(f"not used: {first_of(names.unexpected, 3)}")
    return "; ".join([*parts, "neck and heads are new"])


def _load_all(
    model: DenseModel,
    config: RunConfig,
    weights: Mapping[str, Tensor],
    file: Path,
    card: ModelCard,
    source: DataSource,
    is_of_classes: Callable[[str], bool],
) -> str:
    own = model.state_dict()
    is_same = card.class_names == source.class_names
    wanted = [key for key in own if is_same or not is_of_classes(key)]
    fit = [key for key in wanted if key in weights and weights[key].shape == own[key].shape]
    misfits = [key for key in wanted if key not in fit]
    if misfits:
        raise ValueError(
            f"the weights of init={shown(config.init)} do not fit {config.model}: "
            f"{first_of(misfits, 3)} have other shapes or are missing; write the sizes of that "
            "run, such as channels=, as in its config.yaml"
        )
    model.load_state_dict({key: weights[key] for key in fit}, strict=False)
    classes = (
        f"the classifiers are kept, as the {len(source.class_names)} classes are the same"
        if is_same
        else f"the classifiers are new: {difference(card.class_names, source.class_names)}"
    )
    return f"{len(fit)} of {counted(len(own), 'tensor')} of {shown(file)} loaded; {classes}"


def _is_foreign(path: Path) -> bool:
    """Return whether a file is one of a backbone's authors: it has no card."""
    return path.suffix in _FOREIGN or (path.suffix == ".safetensors" and not has_card(path))


def _of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a classifier, or those of the backbone of a detector or segmenter."""
    start = "backbone.body."
    if any(key.startswith(start) for key in weights):
        return {
            key.removeprefix(start).removeprefix("model."): value
            for key, value in weights.items()
            if key.startswith(start)
        }
    return dict(weights)


def _classifier(model: DenseModel) -> Any:
    """Return the classifier of the backbone on the meta device, which has the published names."""
    arguments = {k: v for k, v in model.backbone_args.items() if k != "pretrained"}
    with torch.device("meta"):
        return create_model(model.model, **arguments)
