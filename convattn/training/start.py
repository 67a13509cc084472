"""Where a training starts: a new run, or the last checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.data import shown
from convattn.runs.card import ModelCard
from convattn.runs.data_record import DataRecord
from convattn.runs.folder import RunFolder
from convattn.runs.weights import find_checkpoint
from convattn.training.config import RunConfig, path_of
from convattn.training.settings import make_config
from convattn.training.task import Task

# Settings that a resumed run cannot change, since its weights, batches or optimiser depend on them.
# `value_range` can be set if the checkpoint has none, and `data` if its folder was moved.
_FIXED = (
    "task", "model", "model_args", "data", "root", "train_split", "val_split", "val_fraction",
    "split_seed", "steps", "batch_size", "accumulate", "opt", "momentum", "opt_betas",
    "weight_decay", "layer_decay", "batch_norm", "ema", "seed", "runs", "name", "value_range",
    "pretrained", "init", "from_scratch",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """The start of a training: from a checkpoint, or without one for a new run."""

    checkpoint: Path | None = None
    steps_done: int = 0
    epochs_done: int = 0
    batches_done: int = 0
    card: ModelCard | None = None
    note: str = ""


def is_run_of(folder: Path, config: RunConfig) -> bool:
    """Return whether a folder has a run of exactly this configuration."""
    if not (folder / "config.yaml").is_file():
        return False
    return RunFolder(folder).read_config() == config.model_dump(mode="json")


def task_of(path: str | Path) -> str:
    """Return the name of a run's task."""
    folder, _ = find_run(Path(path).expanduser())
    return str(folder.read_config().get("task", "classification"))


def find_run(path: Path) -> tuple[RunFolder, Path | None]:
    """Return the folder of a run, and the checkpoint to continue from or None."""
    folder = RunFolder(path)
    is_run = (path / "config.yaml").is_file()
    if is_run and not any(folder.checkpoints.glob("*.ckpt")):
        return folder, None
    if not is_run and folder.checkpoints.is_dir() and not any(folder.checkpoints.iterdir()):
        raise FileNotFoundError(
            f"{shown(path)} has no config.yaml and no checkpoint: the training ended before "
            "its first step; remove the folder and start the training again"
        )
    best = folder.checkpoints / "best.ckpt"
    is_best_alone = is_run and best.is_file() and not folder.last.is_file()
    checkpoint = find_checkpoint(path, best.name if is_best_alone else "last.ckpt")
    folder = RunFolder(checkpoint.parent.parent)
    if checkpoint.suffix != ".ckpt" or not (folder.path / "config.yaml").is_file():
        raise ValueError(
            f"cannot resume from {checkpoint}: give a run folder, or a .ckpt file in one"
        )
    return folder, checkpoint


def changed_settings(
    task: type[Task[Any]],
    values: Mapping[str, Any],
    card: ModelCard | None,
    record: DataRecord | None,
    overrides: Mapping[str, Any],
) -> RunConfig:
    """Return the settings of a resumed run; raise `ValueError` if one cannot change."""
    values = dict(values)
    free = {"value_range"} if card is not None and card.value_range is None else set()
    if card is not None and not free:
        values["value_range"] = card.value_range
    if record is not None and path_of(str(overrides.get("data", ""))):
        free |= {"data", "json", "images"}  # the folder may have moved: see `open_again`
    for key in overrides:
        if key in (*_FIXED, *task.fixed) and key not in free:
            raise ValueError(
                f"{key} cannot change in a resumed run (it is {values.get(key)!r}); "
                "start a new run, with init=RUN_DIR to start from these weights"
            )
    return make_config(task.config_class, {**values, **overrides}, given=overrides)


def has_finished(folder: RunFolder, config: RunConfig, start: Start) -> bool:
    """Return whether all epochs are trained and evaluated.

    Raises:
        ValueError: the configuration has fewer epochs than the run has finished.
    """
    done = start.epochs_done
    if config.steps is not None:
        return start.steps_done >= config.steps and folder.is_evaluated
    if config.epochs < done:
        raise ValueError(
            f"{folder.path} has finished {done} epochs, more than epochs={config.epochs}; "
            f"epochs={done + 10} continues it"
        )
    return config.epochs == done and folder.is_evaluated
