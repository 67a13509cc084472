"""The files of a run folder as one object; a file that is missing leaves its field empty.

Files read: ``metrics.csv``, ``evaluation.json``, ``predictions.csv``, ``config.yaml``,
``environment.json`` and ``broken_images.txt``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Prediction:
    """One line of ``predictions.csv``: what the network said about one validation image."""

    index: int
    path: str
    label: int
    predicted: int
    probability: float
    label_probability: float

    @property
    def is_wrong(self) -> bool:
        """Whether the predicted class is not the true one."""
        return self.label != self.predicted


@dataclass(frozen=True)
class Run:
    """Everything a report says about one training run."""

    name: str
    epochs: list[dict[str, float]] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    predictions: list[Prediction] | None = None
    config: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    broken_images: list[str] = field(default_factory=list)

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return [str(name) for name in self.evaluation.get("class_names", [])]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as keys and values."""
        settings = yaml.safe_load(self.config)
        return settings if isinstance(settings, dict) else {}

    @cached_property
    def confusion(self) -> list[list[int]]:
        """Counts of images by (true class, predicted class)."""
        return [[int(count) for count in row] for row in self.evaluation.get("confusion", [])]

    @cached_property
    def mistakes(self) -> list[Prediction]:
        """The wrong predictions, the most confident first."""
        wrong = [p for p in self.predictions or [] if p.is_wrong]
        return sorted(wrong, key=lambda p: (-p.probability, p.index))

    def described(self, key: str) -> str:
        """Return an entry of the evaluation, or of the configuration before there is one."""
        return str(self.evaluation.get(key) or self.settings.get(key) or f"unnamed {key}")

    def class_name(self, label: int) -> str:
        """Return the name of class ``label``, or its number where names are missing."""
        names = self.class_names
        return names[label] if 0 <= label < len(names) else str(label)


def read_run(run_dir: str | Path) -> Run:
    """Read the files of a run folder.

    Args:
        run_dir: the folder; any of its files may be missing.

    Returns:
        The run; fields without a file are empty, and ``predictions`` is None without its file.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder at {folder}; give the folder a training wrote to")
    return Run(
        name=folder.resolve().name,
        epochs=_read_epochs(folder / "metrics.csv"),
        evaluation=_read_json(folder / "evaluation.json"),
        predictions=_read_predictions(folder / "predictions.csv"),
        config=_read_text(folder / "config.yaml"),
        environment=_read_json(folder / "environment.json"),
        broken_images=_read_text(folder / "broken_images.txt").splitlines(),
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read_epochs(path: Path) -> list[dict[str, float]]:
    """Cells may be empty: an epoch that was not validated has no validation numbers."""
    rows = _read_rows(path) if path.exists() else []
    return [{key: float(cell) for key, cell in row.items() if key and cell} for row in rows]


def _read_predictions(path: Path) -> list[Prediction] | None:
    if not path.exists():
        return None
    return [
        Prediction(
            index=int(row["index"]),
            path=row.get("path") or "",
            label=int(row["label"]),
            predicted=int(row["predicted"]),
            probability=float(row["probability"]),
            label_probability=float(row["label_probability"]),
        )
        for row in _read_rows(path)
    ]
