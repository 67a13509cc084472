"""What the report of a classifier shows: accuracy by class, confusions, wrong examples, slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.explain.page import (
    Cell,
    Gallery,
    Line,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    TableColumn,
    Text,
    class_tables,
    percent,
)
from convattn.explain.sections import (
    confusion_section,
    read_confusion,
    slot_section,
    thumbnail,
)
from convattn.names import shown
from convattn.runs.confusion import Confusion
from convattn.runs.files import DamagedFileError
from convattn.runs.results import Run, read_predictions

PREDICTION_COLUMNS = ("index", "path", "label", "predicted", "probability", "label_probability")
_MISTAKES = 24
_SLOT_IMAGES = 6
_CLASS_COLUMNS = (
    TableColumn("Class", "name"),
    TableColumn("Images", "count"),
    TableColumn("Accuracy", "bar"),
    TableColumn("Most often confused with"),
)


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


def read_rows(run: Run) -> list[PredictionRow] | None:
    """Return the rows of ``predictions.csv``, None without the file.

    Raises:
        DamagedFileError: the file is damaged.
    """
    columns = [name for name in PREDICTION_COLUMNS if name != "path"]
    return read_predictions(run, columns, _prediction)


def classes(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the accuracy of each class, without classes that have no images."""
    confusion = read_confusion(run)
    rows: list[list[Cell]] = []
    for label, entry in enumerate(run.evaluation.get("per_class", [])):
        name, images, accuracy = _class_entry(run.folder, entry)
        if images:
            rows.append([name, images, accuracy, _confused_with(run, confusion, label)])
    if not rows:
        return None
    caption = "Share of the images of each class that are classified correctly"
    return Section("classes", "Accuracy by class", class_tables(_CLASS_COLUMNS, rows, 2, caption))


def confusions(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the confusion matrix and the most confused pairs."""
    confusion = read_confusion(run)
    return confusion_section(
        confusion,
        [run.class_name(label) for label in range(len(confusion))],
        unit="Images",
        explained="Each row is a true class, each column a prediction; the stronger the colour, "
        "the larger the share of the row. Correct predictions lie on the diagonal.",
    )


def mistakes(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the most confident wrong predictions, with the images that can be read."""
    predictions = read_rows(run)
    if predictions is None:
        return None
    wrong = sorted((p for p in predictions if p.is_wrong), key=lambda p: (-p.probability, p.index))
    title, total = "Wrong examples", f"{len(predictions):,} validation images"
    if not wrong:
        text = f"There are none: all {total} are classified correctly."
        return Section("mistakes", title, [Text(text)])
    few = wrong[:_MISTAKES]
    text = f"{len(wrong):,} of {total} {'is' if len(wrong) == 1 else 'are'} classified wrongly."
    if len(few) < len(wrong):
        text += f" The {len(few)} most confident mistakes are shown."
    elif len(few) > 1:
        text += " The most confident mistakes come first."
    found = [_mistake(run, p, pictures) for p in few]
    missing = sum(picture.uri is None for picture in found)
    if missing == len(found):
        blocks: list[Any] = [Text(text), _mistake_table(run, few)]
    else:
        blocks = [Text(text), Gallery(found)]
    if pictures is not None and missing:
        note = (
            f"{missing} of {len(found)} wrong examples have no picture: their images cannot be "
            "read now."
        )
        blocks.insert(1, Text(note))
    return Section("mistakes", title, blocks)


def slots(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the slot maps of the first image of each class."""
    if pictures is None:
        return None
    first: dict[int, PredictionRow] = {}
    for row in read_rows(run) or []:
        first.setdefault(row.label, row)
    examples = [
        (pictures.number(first[label].index, first[label].path), f"class {run.class_name(label)}")
        for label in sorted(first)[:_SLOT_IMAGES]
    ]
    return slot_section(pictures, examples)


PARTS: tuple[Part, ...] = (
    ("accuracy by class", classes),
    ("confusion matrix", confusions),
    ("wrong examples", mistakes),
    ("slot maps", slots),
)


def _class_entry(folder: Path, entry: Any) -> tuple[str, int, float | None]:
    match entry:
        case {"name": name, "images": int(images), "accuracy": int() | float() | None as accuracy}:
            if not images or accuracy is not None:
                return shown(name), images, accuracy
    raise DamagedFileError(
        folder / "evaluation.json", "an entry of 'per_class' has no name, images and accuracy"
    )


def _confused_with(run: Run, confusion: Confusion, label: int) -> str:
    """Return the class that is most often predicted instead of a class, "" for none."""
    counts = confusion.row(label) if label < len(confusion) else {}
    counts.pop(label, None)
    return run.class_name(max(counts, key=lambda other: counts[other])) if counts else ""


def _mistake(run: Run, row: PredictionRow, pictures: Pictures | None) -> Picture:
    true, predicted = run.class_name(row.label), run.class_name(row.predicted)
    uri = None
    if pictures is not None:
        uri = thumbnail(lambda: pictures.image(pictures.number(row.index, row.path)))
    return Picture(
        f"Validation image {row.index}, true class {true}, predicted {predicted}",
        uri,
        shown(row.path or row.index),
        (
            Line("true", true),
            Line("predicted", predicted, is_wrong=True, rest=f", {percent(row.probability)}"),
        ),
    )


def _mistake_table(run: Run, rows: Sequence[PredictionRow]) -> Table:
    columns = (
        TableColumn("Image", "name"),
        TableColumn("True"),
        TableColumn("Predicted"),
        TableColumn("Probability", "percent"),
    )
    cells: list[list[Cell]] = [
        [
            shown(row.path or row.index),
            run.class_name(row.label),
            run.class_name(row.predicted),
            row.probability,
        ]
        for row in rows
    ]
    return Table(columns, cells)


def _prediction(row: dict[str, str]) -> PredictionRow:
    return PredictionRow(
        index=int(row["index"]),
        path=row.get("path") or "",
        label=int(row["label"]),
        predicted=int(row["predicted"]),
        probability=float(row["probability"]),
        label_probability=float(row["label_probability"]),
    )
