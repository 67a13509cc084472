"""The table of tasks, and functions that look up the task of a configuration, run or model.

Importing this module imports none of the tasks. The settings of a task are known without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convattn.names import check_choice, listed

if TYPE_CHECKING:
    import torch
    from lightning.pytorch.callbacks import Callback
    from rich.console import Console

    from convattn.data import DataSource
    from convattn.training.config import RunConfig
    from convattn.training.evaluate import Split
    from convattn.training.run import TrainResult
    from convattn.training.task import Task
    from convattn.training.trained import Checkpoint


@dataclass(frozen=True)
class _Entry:
    """A task in the table.

    Args:
        task: the name of its class in the module ``task``.
        config: the name of the class of its settings in the module ``config``.
        methods: the names of its methods.
    """

    task: str
    config: str
    methods: tuple[str, ...] = ()


# Each task is a package of this name, with the modules task and config and the folder recipes.
_TASKS = {
    "classification": _Entry("Classification", "TrainConfig"),
    "detection": _Entry(
        "Detection",
        "DetectionConfig",
        ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"),
    ),
    "segmentation": _Entry("Segmentation", "SegmentationConfig", ("semantic_fpn", "upernet")),
}


def list_tasks() -> list[str]:
    """Return the names of the tasks."""
    return list(_TASKS)


def methods_of(task: str) -> tuple[str, ...]:
    """Return the names of the methods of a task, () if it has none.

    Raises:
        ValueError: no task has this name; the message suggests the nearest name.
    """
    return _entry(task).methods


def task_of_method(method: str) -> str:
    """Return the name of the task that has a method.

    Raises:
        ValueError: no task has a method of this name; the message suggests the nearest name.
    """
    methods = {name: task for task, entry in _TASKS.items() for name in entry.methods}
    check_choice("method", method, list(methods))
    return methods[method]


def find_task(name: str) -> type[Task[Any]]:
    """Return the task of this name.

    Raises:
        ValueError: no task has this name; the message suggests the nearest name.
    """
    entry = _entry(name)
    task: type[Task[Any]] = getattr(import_module(f"{__package__}.{name}.task"), entry.task)
    return task


def config_of(task: str) -> type[RunConfig]:
    """Return the class of the settings of a task.

    Raises:
        ValueError: no task has this name; the message suggests the nearest name.
    """
    entry = _entry(task)
    found: type[RunConfig] = getattr(import_module(f"{__package__}.{task}.config"), entry.config)
    return found


def recipes_of(task: str) -> Traversable:
    """Return the folder of the recipes of a task that come with the package.

    Raises:
        ValueError: no task has this name; the message suggests the nearest name.
    """
    _entry(task)
    return resources.files(__package__) / task / "recipes"


def list_recipes(task: str) -> list[str]:
    """Return the names of the recipes of a task that come with the package."""
    from convattn.training import settings

    folder = recipes_of(task)
    return settings.list_recipes(folder) if folder.is_dir() else []


def load_config(
    task: str, recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the checked configuration of a training.

    Args:
        task: name of the task.
        recipe: the name of a recipe from `list_recipes`, or a path that ends in .yaml or .yml;
            None for the default of the task.
        overrides: settings that replace those of the recipe, see `settings.load_config`.

    Raises:
        ValueError: an unknown task or key (the message suggests the nearest), an invalid value,
            or a recipe of another task.
        FileNotFoundError: the recipe file does not exist.
    """
    from convattn.training import settings

    _check_recipe(task, recipe)
    return settings.load_config(config_of(task), recipes_of(task), recipe, overrides)


def _entry(task: str) -> _Entry:
    check_choice("task", task, list(_TASKS))
    return _TASKS[task]


def _check_recipe(task: str, recipe: str | Path | None) -> None:
    """Raise `ValueError` if the name of a recipe is one of another task."""
    if recipe is None or str(recipe).endswith((".yaml", ".yml")) or recipe in list_recipes(task):
        return
    for other in _TASKS:
        if other != task and recipe in list_recipes(other):
            raise ValueError(
                f"the recipe {recipe} is for {other}, not for {task}; recipes for {task}: "
                f"{listed(list_recipes(task), 20)}"
            )


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
    from convattn.runs.weights import find_checkpoint, read_weights
    from convattn.training.trained import restored

    file = find_checkpoint(path)
    weights, card = read_weights(file)
    return restored(find_task(card.task), card, weights, file)


def evaluate(
    checkpoint: str | Path | Checkpoint,
    data: str | DataSource | None = None,
    *,
    split: Split = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device = "auto",
    max_broken: float = 0.01,
    options: Mapping[str, Any] | None = None,
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
        batch_size: images at a time; the result does not depend on it. By default that of the task:
            64, or 4 of detection and segmentation.
        workers: loading processes.
        device: "auto" takes a GPU if there is one.
        max_broken: the largest share of unreadable images that is skipped without an error.
        options: options of the task, by default those of the training: ``score`` and ``nms`` of
            detection; ``inference``, ``window``, ``window_stride`` and ``flip`` of segmentation.
        **data_options: further arguments of `open_dataset`; ``val_split``, ``train_split``,
            ``json`` and ``images`` choose another part of the data of the training.

    Returns:
        The task's `TaskEvaluation`, such as `Evaluation`.

    Raises:
        ValueError: the classes of the data are not those of the checkpoint, too many images
            cannot be read, or an option is unknown or out of range.
    """
    from convattn.training import evaluate as engine
    from convattn.training.trained import Checkpoint

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
        options=options,
        **data_options,
    )
