"""The files of a run folder as one object.

Files read: ``metrics.csv``, ``evaluation.json``, ``predictions.csv``, ``config.yaml``,
``environment.json`` and ``broken_images.txt``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from convattn.names import shown
from convattn.runs.confusion import Confusion
from convattn.runs.files import DamagedFileError, read_csv, read_json, read_text

PREDICTION_COLUMNS = ("index", "path", "label", "predicted", "probability", "label_probability")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PredictionRow:
    """One line of ``predictions.csv``: what the network predicted for one held-out image."""

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
    """The data of one training run for its report.

    ``notes`` names the files that are damaged; their fields are empty.
    """

    name: str
    epochs: list[dict[str, float]] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    predictions: list[PredictionRow] | None = None
    config: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    broken_images: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of their labels, without control characters."""
        return [shown(name) for name in self.evaluation.get("class_names", [])]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as keys and values; empty if it is damaged."""
        try:
            settings = yaml.safe_load(self.config)
        except (yaml.YAMLError, ValueError, RecursionError):
            return {}
        return settings if isinstance(settings, dict) else {}

    @cached_property
    def confusion(self) -> Confusion:
        """Counts of images by (true class, predicted class)."""
        return Confusion.from_json(self.evaluation.get("confusion", []))

    @cached_property
    def mistakes(self) -> list[PredictionRow]:
        """The wrong predictions, the most confident first."""
        wrong = [p for p in self.predictions or [] if p.is_wrong]
        return sorted(wrong, key=lambda p: (-p.probability, p.index))

    def described(self, key: str) -> str:
        """Return an entry of the evaluation, or of the configuration if there is no evaluation."""
        return str(self.evaluation.get(key) or self.settings.get(key) or f"unnamed {key}")

    def class_name(self, label: int) -> str:
        """Return the name of class ``label``, or its number if names are missing."""
        names = self.class_names
        return names[label] if 0 <= label < len(names) else str(label)


def read_run(run_dir: str | Path) -> Run:
    """Read the files of a run folder.

    Args:
        run_dir: the folder; any of its files may be missing or damaged.

    Returns:
        The run; fields without a file are empty, and ``predictions`` is None without its file and
        for tasks other than classification. A damaged file leaves its field empty too, and a
        sentence in ``notes``.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no run folder at {shown(folder)}; give the folder of a training run"
        )
    notes: list[str] = []

    def read(name: str, reader: Callable[[Path], Value], empty: Value) -> Value:
        try:
            return reader(folder / name)
        except FileNotFoundError:
            return empty
        except DamagedFileError as error:
            notes.append(str(error))
        except ValueError as error:
            notes.append(str(DamagedFileError(folder / name, str(error))))
        return empty

    run = Run(
        name=folder.resolve().name,
        epochs=read("metrics.csv", _read_epochs, []),
        config=read("config.yaml", read_text, ""),
        environment=read("environment.json", _read_environment, {}),
        broken_images=read("broken_images.txt", read_text, "").split("\n")[:-1],
        notes=notes,
    )
    if run.settings.get("task", "classification") != "classification":
        return replace(run, evaluation=read("evaluation.json", _read_numbers, {}))
    return replace(
        run,
        evaluation=read("evaluation.json", _read_evaluation, {}),
        predictions=read("predictions.csv", _read_predictions, None),
    )


def _read_epochs(path: Path) -> list[dict[str, float]]:
    """Read the metrics; cells may be empty, such as those of validation before the first one."""
    rows = read_csv(path, ("epoch",))
    return [{key: float(cell) for key, cell in row.items() if key and cell} for row in rows]


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Read the metrics of all images, and check those that a report uses."""
    found = read_json(path)
    for key in ("top1", "top5", "loss", "images_per_second", "parameters", "images"):
        _restore_nan(found, key)
        _check(found, key, int | float)
    _check(found, "class_names", list)
    _check(found, "per_class", list)
    for entry in found.get("per_class", []):
        if not (isinstance(entry, dict) and {"name", "images", "accuracy"} <= entry.keys()):
            raise ValueError("an entry of 'per_class' has no name, images and accuracy")
        _check(entry, "images", int)
        if entry["images"]:
            _check(entry, "accuracy", int | float)
    Confusion.from_json(found.get("confusion", []))
    return found


def _read_numbers(path: Path) -> dict[str, Any]:
    """Read the numbers and texts of the evaluation of a task other than classification."""
    return {k: v for k, v in read_json(path).items() if isinstance(v, int | float | str)}


def _read_environment(path: Path) -> dict[str, Any]:
    """Read the environment, and check the entries that a report uses."""
    found = read_json(path)
    for start in _check(found, "starts", list) or []:
        if not isinstance(start, dict) or not {"time", "command"} <= start.keys():
            raise ValueError("an entry of 'starts' has no time and command")
        _check(start, "time", str)
    return found


def _restore_nan(values: dict[str, Any], key: str) -> None:
    """Put NaN in place of None, which JSON files have for it."""
    if key in values and values[key] is None:
        values[key] = math.nan


def _check(values: Mapping[str, Any], key: str, kind: Any) -> Any:
    """Return the value of a key, or None; raise `ValueError` if it has another type."""
    value = values.get(key)
    if key in values and not isinstance(value, kind):
        raise ValueError(f"its {key!r} is a {type(value).__name__}")
    return value


def _read_predictions(path: Path) -> list[PredictionRow]:
    return [
        PredictionRow(
            index=int(row["index"]),
            path=row.get("path") or "",
            label=int(row["label"]),
            predicted=int(row["predicted"]),
            probability=float(row["probability"]),
            label_probability=float(row["label_probability"]),
        )
        for row in read_csv(path, [name for name in PREDICTION_COLUMNS if name != "path"])
    ]
