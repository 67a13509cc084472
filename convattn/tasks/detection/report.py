"""What the report of a detector shows: precisions, curves, confusions, predictions and truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convattn.explain import figures
from convattn.explain.page import (
    Cell,
    Chart,
    Charts,
    Line,
    Part,
    Pictures,
    Section,
    Table,
    TableColumn,
    Text,
    class_tables,
)
from convattn.explain.sections import (
    Example,
    confusion_section,
    read_confusion,
    truth_section,
)
from convattn.names import shown
from convattn.runs.colours import class_colour
from convattn.runs.files import DamagedFileError
from convattn.runs.results import Run, read_predictions

NUMBERS = {
    "map": "AP of boxes",
    "map50": "AP50 of boxes",
    "mask_map": "AP of masks",
    "mask_map50": "AP50 of masks",
    "objects": "objects",
}
_PREFIXES = {"boxes": "", "masks": "mask_"}
_AVERAGES = {
    "map": "AP",
    "map50": "AP50",
    "map75": "AP75",
    "map_small": "small",
    "map_medium": "medium",
    "map_large": "large",
    "mar_100": "recall",
}
_COLUMNS = ("index", "objects", "right", "missed", "false")


def averages(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the average precisions of boxes and masks."""
    rows: list[list[Cell]] = [
        [title, *(_number(run.evaluation, prefix + name) for name in _AVERAGES)]
        for title, prefix in _PREFIXES.items()
        if _number(run.evaluation, f"{prefix}map") is not None
    ]
    if not rows:
        return None
    columns = [TableColumn("", "name"), *(TableColumn(n, "percent") for n in _AVERAGES.values())]
    text = (
        "AP is the mean of the average precisions at IoU 0.5 to 0.95, AP50 and AP75 are those at "
        "one IoU; small objects have an area below 32 x 32 pixels, large ones above 96 x 96. The "
        "recall is the mean with at most 100 objects per image."
    )
    return Section("averages", "Average precision", [Text(text), Table(columns, rows)])


def classes(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the results of each class, without classes that have no objects."""
    names = {"map": "AP", "map50": "AP50", "recall": "Recall"}
    found = [_class_entry(run, entry) for entry in run.evaluation.get("per_class", [])]
    found = [entry for entry in found if entry["objects"]]
    if not found:
        return None
    if any("mask_map" in entry for entry in found):
        names |= {"mask_map": "Mask AP", "mask_map50": "Mask AP50"}
    columns = [
        TableColumn("Class", "name"),
        TableColumn("Objects", "count"),
        *(TableColumn(t, "bar" if name == "map" else "percent") for name, t in names.items()),
    ]
    rows: list[list[Cell]] = [
        [shown(entry["name"]), entry["objects"], *(_number(entry, name) for name in names)]
        for entry in found
    ]
    caption = "Objects of the held-out images, and how well they are found"
    return Section("classes", "Results by class", class_tables(columns, rows, 2, caption))


def curves(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the curves of precision and recall at IoU 0.5."""
    colours = {
        name: "#{:02x}{:02x}{:02x}".format(*class_colour(label))
        for label, name in enumerate(run.evaluation.get("class_names", []))
    }
    charts = []
    for title, key in (("boxes", "curves"), ("masks", "mask_curves")):
        found = _curves(run, key)
        if found:
            svg = figures.to_svg(figures.precision_recall_figure(found, colours))
            charts.append(Chart(f"Precision by recall of {title}", svg, title=title.capitalize()))
    if not charts:
        return None
    text = (
        "Precision at each recall; a found object is right if it overlaps a true one of its class "
        "with an IoU of at least 0.5. The area below a line is the AP50 of its class."
    )
    return Section("curves-pr", "Precision and recall", [Text(text), Charts(charts)])


def confusions(run: Run, pictures: Pictures | None) -> Section | None:
    """Return the confusion matrix of classes and background."""
    confusion = read_confusion(run)
    names = [*run.class_names, "background"]
    score = _number(run.evaluation, "confusion_score")
    least = f" with a score of at least {score:g}" if score is not None else ""
    return confusion_section(
        confusion,
        [*names, *map(str, range(len(names), len(confusion)))],
        unit="Objects",
        explained=f"Each row is a true class, each column the class of the object{least} that was "
        "found there with an IoU of at least 0.5. The last column counts true objects that "
        "were not found, the last row found objects without a true one.",
    )


def predictions(run: Run, pictures: Pictures | None) -> Section | None:
    """Return found objects beside the true ones."""
    examples = read_predictions(run, _COLUMNS, _example)
    return truth_section(
        run,
        pictures,
        examples or [],
        "Objects with a score of at least 0.25. An object is right if one of its class was found "
        "with an IoU of at least 0.5; dashed boxes count as neither right nor wrong. The worst "
        "images are those with the smallest share of right objects among right, missed and false "
        "ones.",
    )


PARTS: tuple[Part, ...] = (
    ("average precision", averages),
    ("results by class", classes),
    ("precision and recall", curves),
    ("confusion matrix", confusions),
    ("predictions beside the truth", predictions),
)


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return value if isinstance(value, int | float) else None


def _class_entry(run: Run, entry: Any) -> Mapping[str, Any]:
    match entry:
        case {"name": str(), "objects": int()}:
            return dict(entry)
    raise DamagedFileError(
        run.folder / "evaluation.json", "an entry of 'per_class' has no name and objects"
    )


def _curves(run: Run, key: str) -> dict[str, list[float]]:
    found = run.evaluation.get(key, {})
    try:
        curves = {str(name): [float(value) for value in values] for name, values in found.items()}
        np.asarray([*curves.values()])  # they have the same recalls
        return curves
    except (AttributeError, TypeError, ValueError) as error:
        path = run.folder / "evaluation.json"
        raise DamagedFileError(path, f"its {key!r} has no lists of numbers") from error


def _example(row: dict[str, str]) -> Example:
    right, missed, false = (int(row[name]) for name in ("right", "missed", "false"))
    total = right + missed + false
    lines = [Line("right", f"{right:,}", rest=f" of {int(row['objects']):,}")]
    lines += [Line("missed", f"{missed:,}", is_wrong=True)] if missed else []
    lines += [Line("false", f"{false:,}", is_wrong=True)] if false else []
    # Among images without a mistake, those with the most objects are the best.
    quality = right / total + right * 1e-6 if total else 1.0
    return Example(int(row["index"]), row.get("path") or "", quality, lines)
