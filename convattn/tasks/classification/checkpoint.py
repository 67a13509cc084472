"""Trained models: weights and a card on disk, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from convattn.models import create_model
from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.weights import find_checkpoint, read_weights
from convattn.version import __version__


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode, and its card."""

    model: nn.Module
    card: ModelCard
    path: Path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Return the model of a run folder, a .safetensors or a .ckpt file, ready to evaluate.

    Args:
        path: a run folder stands for its best checkpoint.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or no checkpoint in the folder.
        ValueError: the file is not a checkpoint that convattn wrote, is damaged, or its weights
            hold NaN or infinity.
    """
    file = find_checkpoint(path)
    weights, card = read_weights(file)
    return Checkpoint(model=_build(card, weights, file), card=card, path=file)


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
            f"the weights in {shown(path)} do not fit {card.model}; they were written by convattn "
            f"{card.version}, this is {__version__}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval()
