"""Weights with everything that evaluation and prediction need beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from convattn.data import Preprocess, ValueRange, check_range, nfc
from convattn.models import create_model
from convattn.tasks.classification.files import replacing
from convattn.version import __version__

FORMAT = "convattn-classification-1"
_KEY = "convattn"


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says about its weights.

    Args:
        model: the model's name.
        model_args: arguments it was made with, beside ``num_classes`` and ``in_chans``.
        class_names: in the order of the scores; kept in Unicode's form NFC.
        preprocess: what the model expects of its input.
        value_range: of float and deep images, the values that became 0 and 255 in training; None
            where all had 8 bits, and in cards of convattn before this field.
        data: the data set it was trained on.
        data_options: how that was opened, which tells the same held-out part apart again.
        epoch: epochs of training it has seen.
        metrics: what validation found.
        version: of convattn.
    """

    model: str
    model_args: dict[str, Any]
    class_names: tuple[str, ...]
    preprocess: Preprocess
    value_range: ValueRange | None = None
    data: str = ""
    data_options: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    version: str = __version__

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(nfc, self.class_names)))

    def to_json(self) -> str:
        """Return the card as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> ModelCard:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"not a checkpoint of the format {FORMAT}")
        preprocess = Preprocess.from_dict(values.pop("preprocess"))
        class_names = tuple(values.pop("class_names"))
        value_range = check_range(values.pop("value_range", None))
        return ModelCard(
            **values, class_names=class_names, preprocess=preprocess, value_range=value_range
        )


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode, and its card."""

    model: nn.Module
    card: ModelCard
    path: Path


def save_weights(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write weights and card as safetensors; the file appears whole or not at all."""
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata={_KEY: card.to_json()})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Return the model of a run folder, a .safetensors or a .ckpt file, ready to evaluate.

    Args:
        path: a run folder stands for its best checkpoint.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or no checkpoint in the folder.
        ValueError: the file is not a checkpoint that convattn wrote.
    """
    file = find_checkpoint(path)
    weights, card = _read_ckpt(file) if file.suffix == ".ckpt" else _read_safetensors(file)
    return Checkpoint(model=_build(card, weights, file), card=card, path=file)


def find_checkpoint(path: str | Path, which: str = "best.safetensors") -> Path:
    """Return ``path`` itself if it is a file, or the checkpoint of the run folder that it is."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint or run folder {path}")
    for place in (path / "checkpoints" / which, path / which):
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{path} has no {Path('checkpoints') / which}: it is not a run folder, or no epoch of the "
        "training was finished"
    )


def read_ckpt(path: Path) -> dict[str, Any]:
    """Read one of Lightning's checkpoints that convattn wrote."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises nearly anything on a file that is none
        raise ValueError(_not_ours(path)) from error
    if not isinstance(content, dict) or _KEY not in content:
        raise ValueError(_not_ours(path))
    return content


def _read_ckpt(path: Path) -> tuple[Mapping[str, Tensor], ModelCard]:
    content = read_ckpt(path)
    state: dict[str, Tensor] = content["state_dict"]
    prefix = "ema.module." if any(key.startswith("ema.module.") for key in state) else "model."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return weights, ModelCard.from_json(content[_KEY]["card"])


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], ModelCard]:
    try:
        with safe_open(path, framework="pt") as file:
            card = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(_not_ours(path)) from error
    if card is None:
        raise ValueError(
            f"{path} holds weights, but nothing says of which model and classes: it was not "
            "written by convattn train"
        )
    return weights, ModelCard.from_json(card)


def _not_ours(path: Path) -> str:
    return (
        f"{path} is not a checkpoint: give a run folder, or a .safetensors or .ckpt file that "
        "convattn train wrote"
    )


def _build(card: ModelCard, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    model = create_model(
        card.model,
        num_classes=len(card.class_names),
        in_chans=card.preprocess.input_size[0],
        **card.model_args,
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit {card.model}; they were written by convattn "
            f"{card.version}, this is {__version__}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval()
