"""The folder of a training run: its name and its files."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from convattn.data import BrokenFile
from convattn.names import shown
from convattn.runs.data_record import DataRecord
from convattn.runs.environment import environment
from convattn.runs.files import (
    DamagedFileError,
    append_csv_row,
    read_csv,
    read_json,
    read_text,
    remove_temporary,
    replacing,
    write_csv,
    write_json,
    write_text,
)
from convattn.runs.weights import read_card

_LONGEST = 240  # bytes; file systems allow 255 for a name
_OWN = ("config.yaml", "environment.json", "metrics.csv", "data.json", "broken_images.txt")


class RunFolder:
    """The files of one run.

    ``config.yaml``, ``environment.json``, ``data.json`` (the data), ``metrics.csv`` (a row
    per epoch), ``broken_images.txt`` (where there are any), ``checkpoints/``, and after training
    ``predictions.csv`` and ``evaluation.json``.

    Args:
        path: the folder; see `create` for a new one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._made: list[Path] = []

    @staticmethod
    def create(runs: str | Path, name: str | None, model: str, data: str) -> RunFolder:
        """Create a new folder; an existing folder is an error.

        Args:
            runs: the folder of all runs.
            name: name of this run; None for MODEL-DATA-NUMBER with the next free number.
            model: the model's name.
            data: the data set's name.

        Raises:
            ValueError: the name is not a folder inside ``runs``.
            FileExistsError: there is a run of this name.
            OSError: the folder cannot be created.
        """
        runs = Path(runs).expanduser()
        if name is not None:
            return _make_run(runs / _checked(name))
        stem = _cut(f"{_file_name(model)}-{_file_name(data)}")
        for number in itertools.count(1):
            path = runs / f"{stem}-{number}"
            if not os.path.lexists(path):
                with contextlib.suppress(FileExistsError):  # another process was faster
                    return _make_run(path)
        raise AssertionError("itertools.count has no end")

    @property
    def last(self) -> Path:
        """The checkpoint from which a resumed training continues."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.checkpoints / "best.safetensors"

    @property
    def has_best(self) -> bool:
        """Whether the weights of the best epoch exist, as .safetensors or .ckpt."""
        return self.best.is_file() or self.best.with_suffix(".ckpt").is_file()

    @property
    def is_evaluated(self) -> bool:
        """Whether all files of an evaluation exist, and it is the evaluation of the best epoch."""
        if not (self.path / "predictions.csv").is_file():
            return False
        try:
            epoch = read_json(self.path / "evaluation.json").get("epoch")
            return epoch is None or epoch == read_card(self.best).epoch
        except (OSError, ValueError):
            return False

    def discard(self) -> None:
        """Remove the folders that `create` made, and their files, unless there is a checkpoint.

        A folder that another process made, or that holds other files, stays, and so does one that
        cannot be read.
        """
        try:
            if self.checkpoints in self._made and any(self.checkpoints.glob("*.*")):
                return
        except OSError:
            return
        if self.path in self._made:
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            for name in _OWN:
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # the folder has other files
                folder.rmdir()
        self._made = []

    def remove_temporary(self) -> None:
        """Remove the temporary files of an earlier start that was killed."""
        remove_temporary(self.path)
        remove_temporary(self.checkpoints)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write the checked configuration, which can be used as a recipe."""
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """Read the configuration.

        Raises:
            FileNotFoundError: there is no ``config.yaml``.
            DamagedFileError: the file is not a configuration.
        """
        path = self.path / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"{shown(self.path)} has no config.yaml: it is not a run folder"
            )
        text = read_text(path)
        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DamagedFileError(
                path, "it is not YAML: " + " ".join(str(error).split())
            ) from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise DamagedFileError(path, "it does not hold lines of `key: value`")
        return values

    def write_environment(self) -> list[str]:
        """Write facts on software and machine, and add this start to the list of starts.

        Returns:
            A note for each damaged file that was renamed.
        """
        path = self.path / "environment.json"
        starts, notes = [], []
        try:
            starts = read_json(path).get("starts", [])
        except FileNotFoundError:
            pass
        except DamagedFileError as error:
            notes.append(_set_aside(path, error))
        starts = starts if isinstance(starts, list) else []
        write_json(path, {**environment(), "starts": [*starts, _start()]})
        return notes

    def write_data(self, record: DataRecord) -> None:
        """Write the record of the data."""
        write_json(self.path / "data.json", record.to_dict(), indent=None)

    def read_data(self) -> DataRecord | None:
        """Read the record of the data; None if an earlier version wrote the run without it.

        Raises:
            DamagedFileError: the file is not such a record.
        """
        path = self.path / "data.json"
        if not path.exists():
            return None
        fix = (
            "restore it from a copy; if you remove it, the data is split again, and images that "
            "were held out may become training images"
        )
        values = read_json(path, fix)
        try:
            return DataRecord.from_dict(values)
        except ValueError as error:
            raise DamagedFileError(path, str(error), fix) from error

    def keep_metrics(self, columns: Sequence[str], epochs: int) -> list[str]:
        """Start ``metrics.csv``, or keep the rows of the first ``epochs`` of an earlier start.

        Args:
            columns: names of the metrics; further columns of the file are kept.
            epochs: number of finished epochs.

        Returns:
            A note for each damaged file that was renamed.
        """
        path = self.path / "metrics.csv"
        rows: list[dict[str, str]] = []
        notes = []
        try:
            rows = [row for row in self.read_metrics() if int(row["epoch"]) <= epochs]
        except DamagedFileError as error:
            notes.append(_set_aside(path, error))
        except ValueError as error:
            notes.append(_set_aside(path, DamagedFileError(path, str(error))))
        names = dict.fromkeys([*columns, *(rows[0] if rows else ())])
        write_csv(path, names, rows)
        return notes

    def add_metrics(self, columns: Sequence[str], row: Mapping[str, float]) -> list[str]:
        """Add an epoch to ``metrics.csv``.

        Returns:
            A note if the file was damaged since it was written, and was renamed.
        """
        path = self.path / "metrics.csv"
        rounded = {name: _rounded(value) for name, value in row.items()}
        notes = []
        try:
            append_csv_row(path, columns, rounded)
        except DamagedFileError as error:
            notes.append(_set_aside(path, error))
            write_csv(path, columns, [rounded])
        return notes

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of ``metrics.csv``; no rows if there is no such file.

        Raises:
            DamagedFileError: the file is not such a table.
        """
        path = self.path / "metrics.csv"
        return read_csv(path, ("epoch",)) if path.exists() else []

    def write_broken(self, broken: Iterable[BrokenFile]) -> None:
        """Write the paths of skipped images, if there are any, one per line."""
        lines = sorted({file.path.replace("\n", "\\n") for file in broken})
        if lines:
            write_text(self.path / "broken_images.txt", "\n".join(lines) + "\n")

    def write_evaluation(
        self,
        evaluation: Mapping[str, Any],
        columns: Sequence[str],
        predictions: Iterable[Mapping[str, Any]],
    ) -> None:
        """Write ``predictions.csv``, then ``evaluation.json``, which exists only with the former.

        Args:
            evaluation: the metrics of all images.
            columns: columns of the table of predictions.
            predictions: a row per image.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "evaluation.json"
        with replacing(path) as temporary:
            write_json(temporary, dict(evaluation), indent=None)
            with replacing(self.path / "predictions.csv") as table:
                write_csv(table, columns, predictions)
                path.unlink(missing_ok=True)  # it belongs to the earlier predictions

    def _make(self) -> None:
        """Create the folders, and record those that did not exist."""
        for folder in (*reversed(self.path.parents), self.path, self.checkpoints):
            is_above = folder not in (self.path, self.checkpoints)
            try:
                if not (is_above and folder.is_dir()):
                    folder.mkdir()
                    self._made.append(folder)
            except FileExistsError:
                if not (is_above and folder.is_dir()):  # else another process was faster
                    raise


def _make_run(path: Path) -> RunFolder:
    run = RunFolder(path)
    if os.path.isdir(path):  # False where the name is too long
        raise FileExistsError(
            f"there is a run in {shown(path)} already; choose another --name, or continue the run: "
            f"convattn train --resume {shown(path)}"
        )
    try:
        run._make()
    except OSError as error:
        run.discard()
        if isinstance(error, FileExistsError) and os.path.isdir(path):  # another process was faster
            return _make_run(path)
        kind = NotADirectoryError if isinstance(error, FileExistsError) else type(error)
        reason = "is not a folder" if kind is NotADirectoryError else f"({error.strerror})"
        in_name = error.errno == errno.ENAMETOOLONG or error.filename == str(path)
        fix = "another name with name=NAME" if in_name else "another folder with runs=FOLDER"
        raise kind(
            f"cannot make the run folder {shown(path)}: {shown(error.filename)} {reason}; choose "
            f"{fix}"
        ) from error
    return run


def _checked(name: str) -> Path:
    path = Path(name)
    if "\0" in name or not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"name={shown(name)!r} must name a folder inside runs, such as name=first; "
            "runs=FOLDER sets another folder of all runs"
        )
    return path


def _file_name(text: str) -> str:
    """Return the last part of a model's or data set's name, with "_" for special characters."""
    last = text.rstrip("/").split("/")[-1].split(":")[-1]
    return re.sub(r"[^\w.-]+", "_", last) or "data"


def _cut(text: str) -> str:
    """Return the first characters, so that a file's name has room for a number after them."""
    return os.fsencode(text)[:_LONGEST].decode("utf-8", "ignore")


def _start() -> dict[str, str]:
    words = sys.argv or [""]  # a program that embeds Python may give none
    command = " ".join([Path(words[0]).name, *words[1:]])
    return {"time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "command": command}


def _set_aside(path: Path, error: DamagedFileError) -> str:
    """Rename a damaged file that only describes a run; return a note."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except OSError as reason:
        return f"{error.what}; the file is replaced, since it cannot be renamed ({reason.strerror})"
    return f"{error.what}; a new file is started, and the damaged one is renamed to {aside.name}"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if isinstance(value, float) else value
