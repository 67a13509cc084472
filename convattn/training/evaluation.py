"""The result of an evaluation of any task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from convattn.names import counted
from convattn.runs.folder import RunFolder

_MAX_CLASSES = 40  # rows of a table of classes
RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Found:
    """The outputs of a model for all readable images of a data set.

    Args:
        outputs: for each batch, what `Task.outputs` returned for its readable images.
        targets: for each batch, the targets of the same images.
        numbers: the indices of the images in the data set.
        broken: relative names or paths of the images that could not be read.
        split: "val", "train", "all", or the name of another part, such as "test".
        images_per_second: speed of loading, transforms and model, without the first batch.
        parameters: number of parameters of the model.
        notes: sentences on the data and on how images were read.
    """

    outputs: list[Any]
    targets: list[Any]
    numbers: list[int]
    broken: list[str]
    split: str
    images_per_second: float
    parameters: int
    notes: list[str]


def nan_notes(images: int) -> list[str]:
    """Return a sentence on the images for which a model computed NaN, none for 0."""
    text = f"the model computed NaN for {counted(images, 'image')}, which count as all wrong"
    return [text] if images else []


def worst_classes(rows: Sequence[RowT], value: Callable[[RowT], float]) -> tuple[str, list[RowT]]:
    """Return the heading of a table of classes, and its rows: all, or the worst 40 of more.

    Args:
        rows: a row for each class.
        value: returns the number of a row that is low for a bad class.
    """
    if len(rows) <= _MAX_CLASSES:
        return "class", list(rows)
    return f"worst {_MAX_CLASSES} classes", sorted(rows, key=value)[:_MAX_CLASSES]


def csv_row(row: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as cells: floats with six digits, "" for None."""
    return {key: _cell(value) for key, value in vars(row).items()}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else value


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation(ABC):
    """The metrics of a model on a set of images; shares are in 0..1.

    Args:
        model: name of the model.
        data: name of the data set.
        split: "val", "train", "all", or the name of another part, such as "test".
        images: number of readable images.
        images_per_second: speed of loading, transforms and model, without the first batch.
        parameters: number of parameters of the model.
        broken: paths of the images that could not be read.
        notes: sentences on the held-out part, on skipped files and on how images were read.
        epoch: epoch of the training that the weights are from; 0 for none.
    """

    prediction_columns: ClassVar[tuple[str, ...]]

    model: str
    data: str
    split: str
    images: int
    images_per_second: float
    parameters: int
    broken: list[str]
    notes: list[str] = field(default_factory=list)
    epoch: int = 0

    @abstractmethod
    def headline(self) -> list[tuple[str, str]]:
        """Return the main results as pairs of a label and a text."""

    def table(self) -> str:
        """Return further results as lines of text, such as one per class; "" for none."""
        return ""

    @abstractmethod
    def best_line(self) -> str:
        """Return the main result in one phrase, such as "97.22% top-1 (350 of 360 images)"."""

    @abstractmethod
    def prediction_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of ``predictions.csv``."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single predictions, as plain values."""
        names = (f.name for f in fields(self) if f.name != "predictions")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: Path) -> None:
        """Write ``predictions.csv`` and ``evaluation.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.prediction_rows()
        RunFolder(folder).write_evaluation(self.to_dict(), self.prediction_columns, rows)
