"""Small runs for the tests of training: a few coloured images, a tiny model, two epochs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from convattn.tasks.classification import TrainConfig, load_config
from tests.data.class_folders import write_classes

TINY: dict[str, Any] = {
    "model": "test_vit",
    "img_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "warmup_epochs": 0,
    "workers": 0,
    "threads": 1,
    "tensorboard": False,
    "accelerator": "cpu",
    "val_fraction": 0.25,
}


STILL: dict[str, Any] = {"lr": 1e-12, "min_lr": 0, "warmup_lr": 0}  # weights do not move


def write_colors(folder: Path, count: int = 16) -> Path:
    """Write two classes of ``count`` images each."""
    return write_classes(folder / "colors", {"red": count, "blue": count})


def tiny(folder: Path, **changes: Any) -> TrainConfig:
    """Return the configuration of a run on the images that `write_colors` wrote there."""
    where = {"data": f"folder:{folder / 'colors'}", "runs": str(folder / "runs")}
    return load_config(None, {**TINY, **where, **changes})


def silent() -> Console:
    """Return a console that keeps what it is given; read it with ``.file.getvalue()``."""
    return Console(file=io.StringIO(), width=120)


def written(console: Console) -> str:
    """Return what was printed to a `silent` console."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Return the metrics of a run, epoch by epoch."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(run_dir: Path) -> list[dict[str, str]]:
    """Return those that do not depend on the machine."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(run_dir)]


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Return the weights that a run kept."""
    return load_file(run_dir / "checkpoints" / f"{name}.safetensors")
