"""The files of a run folder as one object.

Files read: ``metrics.csv``, ``evaluation.json``, ``config.yaml``, ``environment.json`` and
``broken_images.txt``. The predictions of single images differ from task to task, which read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from convattn.names import shown
from convattn.runs.files import DamagedFileError, read_csv, read_json, read_text

Value = TypeVar("Value")


@dataclass(frozen=True)
class Run:
    """The data of one training run for its report.

    ``notes`` names the files that are damaged; their fields are empty.
    """

    folder: Path
    epochs: list[dict[str, float]] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    broken_images: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

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
        The run; fields without a file are empty. A damaged file leaves its field empty too, and a
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

    return Run(
        folder=folder,
        epochs=read("metrics.csv", _read_epochs, []),
        evaluation=read("evaluation.json", _read_evaluation, {}),
        config=read("config.yaml", read_text, ""),
        environment=read("environment.json", _read_environment, {}),
        broken_images=read("broken_images.txt", read_text, "").split("\n")[:-1],
        notes=notes,
    )


def read_predictions(
    run: Run, columns: Sequence[str], convert: Callable[[dict[str, str]], Value]
) -> list[Value] | None:
    """Return the rows of ``predictions.csv``, None without the file.

    Args:
        run: the run.
        columns: columns that the file must have.
        convert: makes an object of the cells of a row; raises `ValueError` if a cell is wrong.

    Raises:
        DamagedFileError: the file is damaged.
    """
    path = run.folder / "predictions.csv"
    try:
        return [convert(row) for row in read_csv(path, columns)]
    except FileNotFoundError:
        return None
    except DamagedFileError:
        raise
    except ValueError as error:
        raise DamagedFileError(path, str(error)) from error


def _read_epochs(path: Path) -> list[dict[str, float]]:
    """Read the metrics; cells may be empty, such as those of validation before the first one."""
    rows = read_csv(path, ("epoch",))
    return [{key: float(cell) for key, cell in row.items() if key and cell} for row in rows]


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Read the results, with NaN in place of None, and check those of every task."""
    values = {k: math.nan if v is None else v for k, v in read_json(path).items()}
    for key in ("images_per_second", "parameters", "images"):
        _check(values, key, int | float)
    _check(values, "class_names", list)
    _check(values, "per_class", list)
    return values


def _read_environment(path: Path) -> dict[str, Any]:
    """Read the environment, and check the entries that a report uses."""
    found = read_json(path)
    for start in _check(found, "starts", list) or []:
        if not isinstance(start, dict) or not {"time", "command"} <= start.keys():
            raise ValueError("an entry of 'starts' has no time and command")
        _check(start, "time", str)
    return found


def _check(values: Mapping[str, Any], key: str, kind: Any) -> Any:
    """Return the value of a key, or None; raise `ValueError` if it has another type."""
    value = values.get(key)
    if key in values and not isinstance(value, kind):
        raise ValueError(f"its {key!r} is a {type(value).__name__}")
    return value
