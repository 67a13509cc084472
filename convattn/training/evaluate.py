"""Evaluation of a trained model of any task on a data set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from convattn.checks import check_choice
from convattn.data import (
    BROKEN,
    READABLE,
    Batch,
    DataSource,
    ImageSet,
    Joined,
    check_share,
    default_workers,
    eval_loader,
    listed,
    reread,
    shown,
)
from convattn.progress import Progress
from convattn.training.evaluation import Found, TaskEvaluation
from convattn.training.options import check_options, evaluate_options, option_notes
from convattn.training.task import Task
from convattn.training.trained import Checkpoint, folder_data, run_of
from convattn.training.trained_data import is_same, open_for, range_notes

Split = Literal["auto", "train", "val", "all"]
# The options of `open_dataset` that choose images, and their defaults.
_PARTS = {"json": None, "images": None, "train_split": "train", "val_split": "validation"}


def evaluate(
    task: type[Task[Any]],
    loaded: Checkpoint,
    data: str | DataSource | None = None,
    *,
    split: Split = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device = "auto",
    max_broken: float = 0.01,
    console: Console | None = None,
    options: Mapping[str, Any] | None = None,
    **data_options: Any,
) -> TaskEvaluation:
    """Evaluate a trained model; arguments and errors as in `convattn.tasks.table.evaluate`.

    ``console`` shows the progress, by default standard error.
    """
    check_choice("split", split, ("auto", "train", "val", "all"))
    options = dict(options or {})
    check_options(task, options, evaluate_options(task))
    if isinstance(data, DataSource):
        trained_on = is_same(data.name, loaded.card.data)
        scale = loaded.card.value_range
        if scale is not None and scale != data.value_range:
            data = data.scaled(scale)
        opened = OpenedData(data, trained_on)
    else:
        opened = open_data(loaded, data, {**data_options, "max_broken": max_broken})
    data = opened.source
    check_classes(loaded, data)
    images, part = _choose(opened, split)
    place = best_device(device)
    loader = eval_loader(
        images,
        task.eval_transform(loaded.card.preprocess),
        batch_size=task.images_at_once if batch_size is None else batch_size,
        workers=default_workers(images) if workers is None else workers,
        pin_memory=place.type == "cuda",
        low_priority=place.type == "cpu",
        collate=task.collate,
    )
    outputs, targets, numbers, broken, speed = _run(
        task, loaded, loader, place, Progress("evaluating", len(images), console=console), options
    )
    files = reread(images, broken)
    check_share(files, len(images), max_broken, data.name)
    found = Found(
        outputs=outputs,
        targets=targets,
        numbers=numbers,
        broken=[file.path for file in (*data.broken, *files)],
        split=part,
        images_per_second=speed,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        notes=[
            *data.notes,
            *range_notes(loaded.card, data.value_range),
            *option_notes(options),
        ],
    )
    return task.summarise(loaded.card, data, images, found)


def check_classes(checkpoint: Checkpoint, data: DataSource) -> None:
    """Raise `ValueError` unless the data has exactly the checkpoint's classes, if it has any."""
    card = checkpoint.card
    known, given = card.class_names, data.class_names
    if not known or known == given:
        return
    if len(known) != len(given):
        how = f"--method {card.method}" if card.method else "--recipe finetune"
        raise ValueError(
            f"{checkpoint.path} has {len(known)} classes ({listed(known, 5)}), but {data.name} "
            f"has {len(given)} ({listed(given, 5)}); evaluate on data of the same classes, or "
            f"train the model on them: convattn train {how} init=CHECKPOINT"
        )
    number = next(i for i, (a, b) in enumerate(zip(known, given, strict=True)) if a != b)
    raise ValueError(
        f"{checkpoint.path} and {data.name} name their classes differently: class {number} is "
        f"'{shown(known[number])}' in the checkpoint and '{shown(given[number])}' in the data"
    )


def best_device(device: str | torch.device = "auto") -> torch.device:
    """Return a named device, or for "auto" a GPU if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def readable(outputs: Any, batch: Batch) -> tuple[Any, Any, Tensor]:
    """Return outputs, targets and indices of the readable images of a batch.

    Args:
        outputs: for the whole batch, a tensor or a list.
        batch: its ``status`` marks images that are broken or padding.
    """
    keep = batch["status"] == READABLE
    return _chosen(outputs, keep), _chosen(batch["target"], keep), batch["index"][keep]


def sizes_of(batch: Batch) -> list[tuple[int, int]]:
    """Return the width and height of each image of a batch before the transform."""
    return [(width, height) for height, width in batch["size"].tolist()]


def _chosen(values: Any, keep: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values[keep.to(values.device)]
    return [value for value, kept in zip(values, keep.tolist(), strict=True) if kept]


@dataclass(frozen=True)
class OpenedData:
    """Data for an evaluation.

    Args:
        source: the data set.
        trained_on: whether its parts are those of the training.
        held_out: name of the held-out part.
    """

    source: DataSource
    trained_on: bool
    held_out: str = "val"


def open_data(loaded: Checkpoint, name: str | None, options: dict[str, Any]) -> OpenedData:
    """Open a data set.

    The data of a run, also in a folder that was moved, has only the images that the run used for
    training and validation, unless the options choose another part of it.

    Args:
        loaded: the model.
        name: name of the data; None for that of the training.
        options: further arguments of `open_dataset`.
    """
    card, folder = loaded.card, run_of(loaded)
    record = folder.read_data() if folder else None
    trained_on = folder_data(folder) or card.data
    name = name or trained_on
    targets = {key: card.data_options[key] for key in ("targets",) if key in card.data_options}
    given = {"value_range": None, "check": False, **targets, **options}
    if is_same(name, trained_on) or is_same(name, card.data):
        before = dict(card.data_options)
        # Unreadable images that the training skipped are no error in the evaluation.
        given["max_broken"] = max(before.get("max_broken", 0.0), options.get("max_broken", 0.0))
        held_out = _held_out_name({**before, "json": None, **options})
        if _is_other_part(before, options):
            return OpenedData(open_for(card, name, **{**before, **given}), False, held_out)
        source = open_for(card, name, **{**before, **(record.options() if record else {}), **given})
        return OpenedData(record.restore(source) if record else source, True, held_out)
    source, held_out = open_for(card, name, **given), _held_out_name(options)
    if record and not _is_other_part({}, options) and record.is_of(source):
        return OpenedData(record.restore(source), True, held_out)
    return OpenedData(source, False, held_out)


def _is_other_part(before: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether options choose other images of the data than those of the training."""
    return any(
        options.get(key) is not None
        and _part_name(options[key]) != _part_name(before.get(key) or default)
        for key, default in _PARTS.items()
    )


def _part_name(name: Any) -> Any:
    """Return the name of a part, the same one for the usual names of the validation part."""
    return "val" if name in ("val", "validation") else name


def _held_out_name(options: Mapping[str, Any]) -> str:
    """Return the name of the held-out part, or of its annotation file."""
    if json := options.get("json"):
        last = json.split(",")[-1] if isinstance(json, str) else json[-1]
        return Path(last.strip()).name
    return str(_part_name(options.get("val_split") or "val"))


def _choose(data: OpenedData, split: Split) -> tuple[ImageSet, str]:
    """Return the images of a split, and its name."""
    source = data.source
    is_whole = split == "auto" and source.split_here and not data.trained_on
    if split == "all" or is_whole:
        name = data.held_out if is_whole and data.held_out != "val" else "all"
        return Joined(source.train, source.val), name
    return (source.train, split) if split == "train" else (source.val, data.held_out)


@torch.inference_mode()
def _run(
    task: type[Task[Any]],
    loaded: Checkpoint,
    loader: Any,
    device: torch.device,
    progress: Progress,
    options: Mapping[str, Any],
) -> tuple[list[Any], list[Any], list[int], list[int], float]:
    """Return outputs, targets, indices of readable images, indices of broken ones, the speed."""
    model, card = loaded.model.to(device).eval(), loaded.card
    outputs, targets, numbers, broken = [], [], [], []
    times, sizes = [time.perf_counter()], []
    with progress:
        for batch in loader:
            images = batch["image"].to(device, non_blocking=True)
            found = task.outputs(model, images, sizes_of(batch), card, **options)
            output, target, indices = readable(found, batch)
            output, target = task.kept(output, target)
            outputs.append(_on_cpu(output))
            targets.append(_on_cpu(target))
            numbers += indices.tolist()
            broken += batch["index"][batch["status"] == BROKEN].tolist()
            sizes.append(len(indices))
            times.append(time.perf_counter())
            progress.advance(len(batch["index"]))
    return outputs, targets, numbers, broken, _speed(sizes, times)


def _on_cpu(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.cpu()
    if isinstance(outputs, dict):
        return {key: _on_cpu(value) for key, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return [_on_cpu(value) for value in outputs]
    return outputs


def _speed(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Return images per second without the first batch, which waits for the loading processes.

    Args:
        sizes: number of images of each batch.
        times: the time of the start, then of the end of each batch.
    """
    first = 1 if len(sizes) > 1 else 0
    return sum(sizes[first:]) / max(times[-1] - times[first], 1e-9)
