"""The weights that a detector or a segmenter starts from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor

from convattn.data import DataSource
from convattn.models.dense import DenseModel
from convattn.models.official import read_official
from convattn.names import counted, first_of, shown
from convattn.runs.card import ModelCard
from convattn.runs.weights import find_checkpoint, has_card, read_weights
from convattn.training.trained_data import difference, other_range

_FOREIGN = (".pth", ".pt", ".bin")  # files of authors, which have no card


def start_from(
    model: DenseModel,
    init: str,
    own: ModelCard,
    source: DataSource,
    names_by_class: Callable[[ModelCard], Collection[str]],
) -> str:
    """Load the weights of ``init``.

    A checkpoint of the same task, method and backbone gives all tensors, those that belong to
    classes only if the classes are the same. Any other checkpoint, such as that of a classifier or
    a file of a backbone's authors, gives the backbone.

    Args:
        model: is changed in place.
        init: a run folder or a file.
        own: the card of the model.
        source: the data of the training.
        names_by_class: returns the names of the tensors whose shape depends on the number of
            classes.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: nothing is at the path of ``init``.
        ValueError: the file has no weights of this backbone.
    """
    path = Path(init).expanduser()
    if path.is_file() and _is_foreign(path):
        return _load_backbone(model, init, read_official(model.classifier(), path), path)
    file = find_checkpoint(path)
    weights, card = read_weights(file)
    if card.model != own.model:
        raise ValueError(
            f"init={shown(init)} holds the weights of {card.model}, not of {own.model}; write "
            f"model={card.model}"
        )
    if (card.task, card.method) != (own.task, own.method):
        text = _load_backbone(model, init, _of_backbone(weights), file)
    elif card.class_names == own.class_names:
        text = _load(model, init, weights, file)
        text += f"; the classifiers are kept, as the {len(own.class_names)} classes are the same"
    else:
        text = _load(model, init, weights, file, without=names_by_class(own))
        text += f"; the classifiers are new: {difference(card.class_names, own.class_names)}"
    return text + other_range(card, source)


def _load_backbone(model: DenseModel, init: str, weights: Mapping[str, Tensor], file: Path) -> str:
    try:
        names = model.load_backbone(weights)
    except ValueError as error:
        raise ValueError(f"init={shown(init)}: {error}") from error
    if len(names.missing) > len(names.loaded):
        raise ValueError(
            f"init={shown(init)} does not hold the weights of {model.model}: it lacks "
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


def _load(
    model: DenseModel,
    init: str,
    weights: Mapping[str, Tensor],
    file: Path,
    without: Collection[str] = (),
) -> str:
    """Load all tensors of a model but some, and return how many."""
    own = model.state_dict()
    wanted = [key for key in own if key not in without]
    misfits = [key for key in wanted if key not in weights or weights[key].shape != own[key].shape]
    if misfits:
        raise ValueError(
            f"the weights of init={shown(init)} do not fit {model.model}: "
            f"{first_of(misfits, 3)} have other shapes or are missing; write the sizes of that "
            "run, such as channels=, as in its config.yaml"
        )
    model.load_state_dict({key: weights[key] for key in wanted}, strict=False)
    return f"{len(wanted)} of {counted(len(own), 'tensor')} of {shown(file)} loaded"


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
