"""A trained model with its card, from a run folder or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convattn.runs.card import ModelCard
from convattn.runs.weights import find_checkpoint, read_weights
from convattn.training.task import Task
from convattn.version import __version__


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode, and its card."""

    model: nn.Module
    card: ModelCard
    path: Path


def load_trained(task: type[Task[Any]], path: str | Path) -> Checkpoint:
    """Return the model of a run folder, a .safetensors or a .ckpt file, ready to evaluate.

    Args:
        task: of the model.
        path: a run folder stands for its best checkpoint.

    Raises:
        FileNotFoundError: nothing is at ``path``, or the folder has no checkpoint.
        ValueError: convattn did not write the file, it is damaged, or it is of another task.
    """
    file = find_checkpoint(path)
    weights, card = read_weights(file)
    check_task(task, card, file)
    return Checkpoint(model=_restored(task, card, weights, file), card=card, path=file)


def check_task(task: type[Task[Any]], card: ModelCard, file: Path) -> None:
    """Raise `ValueError` where a checkpoint is of another task."""
    if card.task != task.name:
        raise ValueError(f"{file} is a model for {card.task}, not for {task.name}")


def _restored(
    task: type[Task[Any]], card: ModelCard, weights: Mapping[str, Tensor], file: Path
) -> nn.Module:
    model = task.rebuild(card)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {file} do not fit {card.model}; they were written by convattn "
            f"{card.version}, this is {__version__}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval()
