"""The tasks by name, and the functions that find the task of a configuration, run or model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from convattn.data import DataSource
from convattn.names import check_choice
from convattn.runs.weights import find_checkpoint, read_weights
from convattn.training.config import RunConfig
from convattn.training.trained import Checkpoint, restored

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from rich.console import Console

    from convattn.training.evaluate import Split
    from convattn.training.run import TrainResult
    from convattn.training.task import Task

# A task is imported only when it is asked for.
_TASKS = {"classification": "convattn.tasks.classification.task:Classification"}


def find_task(name: str) -> type[Task[Any]]:
    """Return the task of this name.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    check_choice("task", name, list(_TASKS))
    module, _, attribute = _TASKS[name].partition(":")
    task: type[Task[Any]] = getattr(import_module(module), attribute)
    return task


def train(
    config: RunConfig, *, callbacks: Sequence[Callback] = (), console: Console | None = None
) -> TrainResult:
    """Train a model, evaluate its best epoch, and write both to a new run folder.

    Args:
        config: from `load_config`.
        callbacks: further callbacks for Lightning.
        console: where the progress is shown; ``Console(quiet=True)`` for nowhere.

    Returns:
        A `TrainResult`.

    Raises:
        ValueError: the configuration does not fit the data or the model.
        FileExistsError: a run of this name exists.
        TrainingDivergedError: a loss became NaN or infinite.
    """
    from convattn.training import run

    return run.train(find_task(config.task), config, callbacks=callbacks, console=console)


def resume(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainResult:
    """Continue a run, to the same result as without the interruption.

    A run that ended before its first checkpoint starts again. A run that has finished is left
    as it is; ``overrides`` with more epochs continue it.

    Args:
        path: the folder of the run, or one of its .ckpt files.
        overrides: settings that differ from the run's, such as ``{"epochs": 200}``, or the data
            where its folder has moved.
        callbacks: further callbacks for Lightning.
        console: where the progress is shown.

    Returns:
        A `TrainResult`.

    Raises:
        FileNotFoundError: ``path`` does not exist, or holds no run and no checkpoint.
        ValueError: a setting cannot change in a resumed run, or the data is not that of the run.
    """
    from convattn.training import run

    task = find_task(run.task_of(path))
    return run.resume(task, path, overrides=overrides, callbacks=callbacks, console=console)


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` and ``curves.png`` of a run again.

    Pictures of images and slot maps need the images that the run was trained on. Where these or
    the checkpoint are missing, the page has the numbers, and a line with the reason.

    Args:
        run_dir: the folder of the run.

    Returns:
        The path of ``report.html``.

    Raises:
        OSError: the page cannot be written.
    """
    from convattn.training import report, run

    return report.write_run_report(find_task(run.task_of(run_dir)), Path(run_dir).expanduser())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Return the model of a run folder, a .safetensors or a .ckpt file, ready to evaluate.

    Args:
        path: a run folder stands for its best checkpoint.

    Raises:
        FileNotFoundError: nothing is at ``path``, or the folder has no checkpoint.
        ValueError: convattn did not write the file, or it is damaged.
    """
    file = find_checkpoint(path)
    weights, card = read_weights(file)
    return restored(find_task(card.task), card, weights, file)


def evaluate(
    checkpoint: str | Path | Checkpoint,
    data: str | DataSource | None = None,
    *,
    split: Split = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device = "auto",
    max_broken: float = 0.01,
    **data_options: Any,
) -> Any:
    """Evaluate a trained model.

    Args:
        checkpoint: a run folder, a file, or what `load_checkpoint` returned.
        data: a name as for `open_dataset`, or an open `DataSource`; by default the training's.
            Float and deep images are read with the checkpoint's ``value_range``; where it has
            none, integers of a named data set are read as 0 to 65535.
        split: "val", "train" or "all" images. "auto" is the held-out part; of a folder without
            one it is all images, unless the model was trained on this very folder.
        batch_size: images at a time; the result does not depend on it.
        workers: loading processes.
        device: "auto" takes a GPU if there is one.
        max_broken: the share of unreadable images that is left out, not an error.
        **data_options: further arguments of `open_dataset`.

    Returns:
        The task's `TaskEvaluation`, such as `Evaluation`.

    Raises:
        ValueError: the data has classes that the checkpoint does not know, or too many images
            that cannot be read.
    """
    from convattn.training import evaluate as engine

    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    return engine.evaluate(
        find_task(loaded.card.task),
        loaded,
        data,
        split=split,
        batch_size=batch_size,
        workers=workers,
        device=device,
        max_broken=max_broken,
        **data_options,
    )
