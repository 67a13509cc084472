"""The folder that a training run writes: its name, its files, and the machine it ran on."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from convattn.data import BrokenFile
from convattn.machine import git_commit, package_version, processor_name
from convattn.ops.kernels.native.library import describe as cpu_kernels
from convattn.tasks.classification.config import TrainConfig
from convattn.tasks.classification.files import replacing
from convattn.tasks.classification.settings import RECIPES
from convattn.training.settings import load_recipe, make_config
from convattn.version import __version__

METRICS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_top1",
    "val_top5",
    "images_per_second",
)
_PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pillow")


class RunFolder:
    """The files of one run.

    ``config.yaml``, ``environment.json``, ``metrics.csv`` (a row per epoch), ``broken_images.txt``
    (where there are any), ``checkpoints/``, and after training ``evaluation.json`` and
    ``predictions.csv``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @staticmethod
    def create(config: TrainConfig) -> RunFolder:
        """Make a new folder; one that exists is never written into.

        Raises:
            FileExistsError: the configuration's name is taken.
        """
        runs = Path(config.runs).expanduser()
        runs.mkdir(parents=True, exist_ok=True)
        if config.name is not None:
            path = runs / config.name
            if path.exists():
                raise FileExistsError(
                    f"there is a run in {path} already; choose another --name, or go on with it: "
                    f"convattn train --resume {path}"
                )
            path.mkdir(parents=True)
        else:
            path = _next_free(runs, f"{_file_name(config.model)}-{_file_name(config.data)}")
        run = RunFolder(path)
        run.checkpoints.mkdir()
        return run

    @property
    def last(self) -> Path:
        """Lightning's checkpoint to go on from."""
        return self.checkpoints / "last.ckpt"

    def write_config(self, config: TrainConfig) -> None:
        """Write the resolved configuration, which is a recipe too."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        with replacing(self.path / "config.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_config(self) -> TrainConfig:
        """Read the configuration back."""
        values = load_recipe(TrainConfig, RECIPES, self.path / "config.yaml")
        return make_config(TrainConfig, values)

    def write_environment(self) -> None:
        """Write what the run ran with and on; a resumed run adds a second entry to its starts."""
        path = self.path / "environment.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, {**environment(), "starts": [*before.get("starts", []), _start()]})

    def keep_metrics(self, epochs: int) -> None:
        """Start ``metrics.csv``, or keep the first ``epochs`` rows of an earlier start."""
        rows = [row for row in self.read_metrics() if int(row["epoch"]) <= epochs]
        write_csv(self.path / "metrics.csv", METRICS, rows)

    def add_metrics(self, row: Mapping[str, float]) -> None:
        """Add an epoch to ``metrics.csv``."""
        with (self.path / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, METRICS).writerow({k: _round(v) for k, v in row.items()})

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv``."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def write_broken(self, broken: Iterable[BrokenFile]) -> None:
        """List the images that were skipped, if any, a path per line."""
        lines = sorted({file.path for file in broken})
        if lines:
            path = self.path / "broken_images.txt"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Return versions, machine and commit, such as a reader needs to repeat a run."""
    return {
        "convattn": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        **{name: package_version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": cpu_kernels(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a heading."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _start() -> dict[str, str]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "command": command}


def _next_free(runs: Path, stem: str) -> Path:
    for number in range(1, 1_000_000):
        path = runs / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"a million runs called {stem} in {runs}: choose a --name")


def _file_name(text: str) -> str:
    """The last part of a model's or data set's name, without what a file name should not have."""
    last = text.rstrip("/").split("/")[-1].split(":")[-1]
    return re.sub(r"[^\w.-]+", "_", last) or "data"


def _round(value: float) -> float:
    return float(f"{value:.6g}") if isinstance(value, float) else value
