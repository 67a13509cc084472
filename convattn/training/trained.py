"""A trained model with its card, from a run folder or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.folder import RunFolder
from convattn.runs.weights import find_checkpoint, read_weights
from convattn.training.task import Task
from convattn.version import __version__


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode, and its card."""

    model: nn.Module
    card: ModelCard
    path: Path


def load_trained(task: type[Task[Any]], path: Path) -> Checkpoint:
    """Load the model of a run folder or a file, as `convattn.tasks.table.load_checkpoint`.

    Raises:
        ValueError: the model is of another task.
    """
    file = find_checkpoint(path)
    weights, card = read_weights(file)
    check_task(task, card, file)
    return restored(task, card, weights, file)


def named_model(card: ModelCard) -> str:
    """Return the name of a model, with its method where the task has several."""
    return f"{card.method} with {card.model}" if card.method else card.model


def run_of(checkpoint: Checkpoint) -> RunFolder | None:
    """Return the folder of the run that wrote a checkpoint; None for a file outside of a run."""
    folder = RunFolder(checkpoint.path.parent.parent)
    is_run = (
        checkpoint.path.parent == folder.checkpoints and (folder.path / "config.yaml").is_file()
    )
    return folder if is_run else None


def folder_data(folder: RunFolder | None) -> str:
    """Return the name of the data in a run's configuration, "" if the file cannot be read."""
    try:
        return str(folder.read_config().get("data", "")) if folder else ""
    except (OSError, ValueError):
        return ""


def check_task(task: type[Task[Any]], card: ModelCard, file: Path) -> None:
    """Raise `ValueError` where a checkpoint is of another task."""
    if card.task != task.name:
        raise ValueError(f"{file} is a model for {card.task}, not for {task.name}")


def restored(
    task: type[Task[Any]], card: ModelCard, weights: Mapping[str, Tensor], file: Path
) -> Checkpoint:
    """Build the model of a card and load its weights.

    Args:
        task: the task of the model.
        card: the model card.
        weights: the state dict.
        file: the file that has both, for messages.

    Raises:
        ValueError: the weights do not fit the model.
    """
    model = task.rebuild(card)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {shown(file)} do not fit {card.model}; they were written by convattn "
            f"{card.version}, this is {__version__}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return Checkpoint(model=model.eval(), card=card, path=file)
