"""What the report of a segmenter shows: IoU by class, confusions, predictions and truth."""

from __future__ import annotations

import math
from typing import Any

from convattn.explain.page import (
    Cell,
    Line,
    Part,
    Pictures,
    Section,
    TableColumn,
    class_tables,
    percent,
)
from convattn.explain.sections import (
    Example,
    confusion_section,
    read_confusion,
    truth_section,
)
from convattn.names import shown
from convattn.runs.files import DamagedFileError
from convattn.runs.results import Run, read_predictions

NUMBERS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
}
_COLUMNS = ("index", "mean_iou", "pixel_accuracy")
_CLASS_COLUMNS = (
    TableColumn("Class", "name"),
    TableColumn("Pixels", "count"),
    TableColumn("IoU", "bar"),
    TableColumn("Accuracy", "percent"),
)


def classes(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the IoU and accuracy of each class, without classes that do not occur."""
    rows = [_class_row(run, entry) for entry in run.evaluation.get("per_class", [])]
    rows = [row for row in rows if row[2] is not None]
    if not rows:
        return None
    caption = (
        "IoU: pixels of which the true and the predicted class are this class, divided by those of "
        "which one is. Accuracy: share of the true pixels that are predicted correctly"
    )
    return Section("classes", "Results by class", class_tables(_CLASS_COLUMNS, rows, 2, caption))


def confusions(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the confusion matrix of pixels."""
    confusion = read_confusion(run)
    return confusion_section(
        confusion,
        [run.class_name(label) for label in range(len(confusion))],
        unit="Pixels",
        explained="Each row is the true class of pixels, each column the predicted one; the "
        "stronger the colour, the larger the share of the row. The numbers are these shares in per "
        "cent.",
        shares=True,
    )


def predictions(run: Run, pictures: Pictures | None) -> Section | None:
    """Return predicted masks beside the true ones."""
    examples = read_predictions(run, _COLUMNS, _example)
    return truth_section(
        run,
        pictures,
        [example for example in examples or [] if not math.isnan(example.quality)],
        "Dark pixels of the truth have no class and do not count. The worst images are those with "
        "the lowest mean IoU of the classes in them.",
    )


PARTS: tuple[Part, ...] = (
    ("results by class", classes),
    ("confusion matrix", confusions),
    ("predictions beside the truth", predictions),
)


def _class_row(run: Run, entry: Any) -> list[Cell]:
    match entry:
        case {
            "name": str(name),
            "pixels": int(pixels),
            "iou": int() | float() | None as iou,
            "accuracy": int() | float() | None as accuracy,
        }:
            return [shown(name), pixels, iou, accuracy]
    raise DamagedFileError(
        run.folder / "evaluation.json",
        "an entry of 'per_class' has no name, pixels, iou and accuracy",
    )


def _example(row: dict[str, str]) -> Example:
    """Return an image; its quality is NaN where no pixel has a true class."""
    iou, accuracy = (float(row[name] or "nan") for name in ("mean_iou", "pixel_accuracy"))
    lines = [
        Line("mean IoU", percent(iou)),
        Line("pixels", percent(accuracy), rest=" correct"),
    ]
    return Example(int(row["index"]), row.get("path") or "", iou, lines)
