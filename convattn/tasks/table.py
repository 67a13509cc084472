"""The table of tasks, and functions that look up the task of a configuration, run or model."""

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

# The class of each task, imported when `find_task` returns it.
_TASKS = {"classification": "convattn.tasks.classification.task:Classification"}


def find_task(name: str) -> type[Task[Any]]:
    """Return the task of this name.

    Raises:
        ValueError: no task has this name; the message suggests the nearest name.
    """
    check_choice("task", name, list(_TASKS))
    module, _, attribute = _TASKS[name].partition(":")
    task: type[Task[Any]] = getattr(import_module(module), attribute)
    return task


def train(
    config: RunConfig, *, callbacks: Sequence[Callback] = (), console: Console | None = None
) -> TrainResult:
    """Train a model, evaluate its best epoch, and write the results to a new run folder.

    Args:
        config: from `load_config`.
        callbacks: further callbacks for Lightning.
        console: prints the progress; ``Console(quiet=True)`` prints nothing.

    Returns:
        A `TrainResult`.

    Raises:
        ValueError: the configuration does not fit the data or the model.
        FileExistsError: a run of this name exists.
        TrainingDivergedError: a loss or a weight became NaN or infinite.
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
    """Continue a run; the result is the same as without the interruption.

    A run that ended before its first checkpoint starts again. A finished run does not change,
    unless ``overrides`` sets more epochs.

    Args:
        path: the folder of the run, or one of its .ckpt files.
        overrides: settings that differ from those of the run, such as ``{"epochs": 200}``, or
            ``data`` if the folder of the data was moved.
        callbacks: further callbacks for Lightning.
        console: prints the progress.

    Returns:
        A `TrainResult`.

    Raises:
        FileNotFoundError: ``path`` does not exist, or holds no run and no checkpoint.
        ValueError: a setting cannot change in a resumed run, or the data is not that of the run.
    """
    from convattn.training import run
    from convattn.training.start import task_of

    task = find_task(task_of(path))
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
    from convattn.training.report import write_run_report
    from convattn.training.start import task_of

    return write_run_report(find_task(task_of(run_dir)), Path(run_dir).expanduser())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load the model of a run folder, a .safetensors or a .ckpt file, in evaluation mode.

    Args:
        path: a file, or a run folder, whose best checkpoint is loaded.

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
        data: a name as for `open_dataset`, or an open `DataSource`; by default that
            of the training.
            Float and deep images are read with the checkpoint's ``value_range``; where it has
            none, integers of a named data set are read as 0 to 65535.
        split: "val", "train" or "all" images. "auto" is the held-out part; for a folder without
            a held-out part that the model was not trained on, it is all images.
        batch_size: images at a time; the result does not depend on it.
        workers: loading processes.
        device: "auto" takes a GPU if there is one.
        max_broken: the largest share of unreadable images that is skipped without an error.
        **data_options: further arguments of `open_dataset`.

    Returns:
        The task's `TaskEvaluation`, such as `Evaluation`.

    Raises:
        ValueError: the classes of the data are not those of the checkpoint, or too many images
            cannot be read.
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
