"""The evaluation of a detector: average precisions, curves, confusions, single images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from convattn.data import DataSource, ImageSet
from convattn.names import counted, shown
from convattn.runs.card import ModelCard
from convattn.runs.confusion import Confusion
from convattn.runs.detections import SHOWN_SCORE
from convattn.runs.files import write_json
from convattn.runs.rle import Rle
from convattn.tasks.detection.config import MASK_METHODS
from convattn.tasks.detection.matching import match
from convattn.tasks.detection.meter import KINDS, PREFIXES, average_precision
from convattn.tasks.detection.objects import Objects, finite
from convattn.training.evaluation import Found, TaskEvaluation, nan_notes, worst_classes

RESULTS = "detections.json"  # the found objects as COCO results


@dataclass(frozen=True)
class ClassPrecision:
    """The results of one class; a number is None where the class has no object.

    Args:
        name: of the class.
        objects: number of true objects, without crowds.
        map: mean of the average precisions at IoU 0.5 to 0.95.
        map50: average precision at IoU 0.5.
        recall: mean of the recalls at IoU 0.5 to 0.95.
        mask_map: as ``map``, of masks; None without masks.
        mask_map50: as ``map50``, of masks; None without masks.
    """

    name: str
    objects: int
    map: float | None = None
    map50: float | None = None
    recall: float | None = None
    mask_map: float | None = None
    mask_map50: float | None = None


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(TaskEvaluation):
    """The metrics of a detector on a set of images.

    Average precisions are those of COCO: over IoU 0.5 to 0.95 (map), at one IoU (map50, map75), and
    of objects of an area below 32 x 32 pixels (small), below 96 x 96 (medium) and above (large).
    Recalls (mar) are those with at most 1, 10 and 100 objects per image. A number is NaN where
    there is no such object. Names of numbers of masks start with ``mask_``; they are None for
    methods without masks.

    Args:
        method: name of the method.
        class_names: in the order of their numbers.
        objects: number of true objects, without crowds.
        crowds: number of crowds.
        per_class: the results of the classes.
        curves: for each class the precision at IoU 0.5 at 101 recalls from 0 to 1; none for
            classes without objects.
        mask_curves: the same of masks.
        confusion: ``confusion[true][found]`` is the number of objects; the last row and the last
            column are the background.
        confusion_score: found objects with a lower score do not count in ``confusion``.
        predictions: a row per image.
        results: the found objects as COCO results.
    """

    prediction_columns: ClassVar[tuple[str, ...]] = (
        "index", "path", "objects", "right", "missed", "false",
    )  # fmt: skip

    method: str
    class_names: list[str]
    objects: int
    crowds: int
    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    mar_1: float
    mar_10: float
    mar_100: float
    mask_map: float | None = None
    mask_map50: float | None = None
    mask_map75: float | None = None
    mask_map_small: float | None = None
    mask_map_medium: float | None = None
    mask_map_large: float | None = None
    mask_mar_100: float | None = None
    per_class: list[ClassPrecision]
    curves: dict[str, list[float]]
    mask_curves: dict[str, list[float]] = field(default_factory=dict)
    confusion: Confusion
    confusion_score: float = SHOWN_SCORE
    predictions: list[dict[str, Any]]
    results: list[dict[str, Any]] = field(repr=False)

    @property
    def has_masks(self) -> bool:
        """Whether masks were measured."""
        return self.mask_map is not None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single images and objects, as plain values."""
        values = super().to_dict()
        del values["results"]
        per_class = [_known(asdict(result)) for result in self.per_class]
        return {**_known(values), "per_class": per_class, "confusion": self.confusion.to_json()}

    def headline(self) -> list[tuple[str, str]]:
        """Return the average precisions."""
        rows = [("boxes", self._precisions(""))]
        if self.has_masks:
            rows.append(("masks", self._precisions("mask_")))
        crowds = f" and {counted(self.crowds, 'crowd')}" if self.crowds else ""
        return [*rows, ("objects", f"{self.objects:,}{crowds}")]

    def _precisions(self, prefix: str) -> str:
        names = {"map": "AP", "map50": "AP50", "map75": "AP75"}
        names |= {f"map_{size}": size for size in ("small", "medium", "large")}
        values = ((title, getattr(self, prefix + name)) for name, title in names.items())
        return ", ".join(f"{title} {_percent(value)}" for title, value in values)

    def table(self) -> str:
        """Return the average precision of each class, or of the worst classes of many."""
        known = [row for row in self.per_class if row.map is not None]
        title, rows = worst_classes(known, lambda row: row.map or 0.0)
        width = max(map(len, [title, *(shown(row.name) for row in rows)]))
        masks = f"  {'mask AP':>8}  {'mask AP50':>9}" if self.has_masks else ""
        lines = [f"{title:{width}}  objects  {'AP':>7}  {'AP50':>7}  {'recall':>7}{masks}"]
        for row in rows:
            line = f"{shown(row.name):{width}}  {row.objects:7,}"
            line += "".join(f"  {_percent(v):>7}" for v in (row.map, row.map50, row.recall))
            if self.has_masks:
                line += f"  {_percent(row.mask_map):>8}  {_percent(row.mask_map50):>9}"
            lines.append(line)
        return "\n".join(lines)

    def best_line(self) -> str:
        """Return the average precisions."""
        masks = ""
        if self.has_masks:
            masks = f", masks AP {_percent(self.mask_map)}, AP50 {_percent(self.mask_map50)}"
        boxes = f"AP {_percent(self.map)}, AP50 {_percent(self.map50)}"
        return f"{boxes}{masks} ({counted(self.images, 'held-out image')})"

    def prediction_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of ``predictions.csv``."""
        return self.predictions

    def write(self, folder: Path) -> None:
        """Write ``detections.json``, ``predictions.csv`` and ``evaluation.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULTS, self.results, indent=None)
        super().write(folder)


def summarise(
    card: ModelCard, data: DataSource, images: ImageSet, found: Found
) -> DetectionEvaluation:
    """Compute the metrics from found and true objects."""
    every: list[Objects] = [one for batch in found.outputs for one in batch]
    outputs = [finite(one) for one in every]
    failed = sum(one is not other for one, other in zip(every, outputs, strict=True))
    targets: list[Objects] = [one for batch in found.targets for one in batch]
    has_masks = card.method in MASK_METHODS and any(one["masks"] for one in targets)
    values = average_precision(outputs, targets, masks=has_masks, curves=True)
    names = list(data.class_names)
    prefixes = [PREFIXES[kind] for kind in KINDS if kind == "bbox" or has_masks]
    known = {f"{prefix}{name}" for prefix in prefixes for name in _NUMBERS}
    fields = DetectionEvaluation.__dataclass_fields__
    pairs, rows = _single_images(images, found.numbers, outputs, targets, len(names))
    return DetectionEvaluation(
        model=card.model,
        method=card.method,
        data=data.name,
        split=found.split,
        class_names=names,
        images=len(outputs),
        objects=sum(int((~one["crowd"]).sum()) for one in targets),
        crowds=sum(int(one["crowd"].sum()) for one in targets),
        images_per_second=found.images_per_second,
        parameters=found.parameters,
        broken=found.broken,
        notes=[*found.notes, *nan_notes(failed)],
        epoch=card.epoch,
        per_class=_per_class(names, targets, values, prefixes),
        curves=_curves(names, values, ""),
        mask_curves=_curves(names, values, "mask_") if has_masks else {},
        confusion=Confusion(len(names) + 1, ((t, f, n) for (t, f), n in pairs.items())),
        predictions=rows,
        results=_results(outputs, targets, data.category_ids),
        **{name: values[name].item() for name in known if name in fields},
    )


_NUMBERS = (
    "map", "map50", "map75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100",
)  # fmt: skip


def _per_class(
    names: Sequence[str],
    targets: Sequence[Objects],
    values: Mapping[str, Any],
    prefixes: Sequence[str],
) -> list[ClassPrecision]:
    """Return the results of each class, from the precisions at each IoU and recall."""
    counts = Counter(label for one in targets for label in one["labels"][~one["crowd"]].tolist())
    found: dict[int, dict[str, float]] = {}
    for prefix in prefixes:
        for place, label in enumerate(values["classes"] if f"{prefix}precision" in values else []):
            precision = values[f"{prefix}precision"][..., place]
            if (precision < 0).all():
                continue
            numbers = found.setdefault(label, {})
            numbers[f"{prefix}map"] = precision.mean().item()
            numbers[f"{prefix}map50"] = precision[0].mean().item()
            if not prefix:
                numbers["recall"] = values["recall"][..., place].mean().item()
    return [
        ClassPrecision(name, counts[label], **found.get(label, {}))
        for label, name in enumerate(names)
    ]


def _curves(names: Sequence[str], values: Mapping[str, Any], prefix: str) -> dict[str, list[float]]:
    """Return the precision at IoU 0.5 by recall, of each class with objects."""
    if f"{prefix}precision" not in values:
        return {}
    at50 = values[f"{prefix}precision"][0]
    curves = {
        names[label]: at50[:, place]
        for place, label in enumerate(values["classes"])
        if (at50[:, place] >= 0).all()
    }
    return {name: [round(value, 4) for value in curve.tolist()] for name, curve in curves.items()}


def _single_images(
    images: ImageSet,
    numbers: Sequence[int],
    outputs: Sequence[Objects],
    targets: Sequence[Objects],
    background: int,
) -> tuple[Counter[tuple[int, int]], list[dict[str, Any]]]:
    """Return the confusions of classes, and for each image how many objects are right and wrong."""
    pairs: Counter[tuple[int, int]] = Counter()
    rows = []
    for number, found, target in zip(numbers, outputs, targets, strict=True):
        matches = match(found, target, SHOWN_SCORE, background)
        pairs.update(matches.pairs)
        rows.append(
            {
                "index": number,
                "path": images.path(number),
                "objects": int((~target["crowd"]).sum()),
                "right": matches.right,
                "missed": matches.missed,
                "false": matches.false,
            }
        )
    return pairs, rows


def _results(
    outputs: Sequence[Objects], targets: Sequence[Objects], category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """Return the found objects as COCO results.

    Args:
        outputs: the found objects of each image.
        targets: the true objects of each image, which have the id of the image.
        category_ids: the id of each class; () for class numbers from 1.
    """
    results = []
    for found, target in zip(outputs, targets, strict=True):
        masks: Sequence[Rle | None] = found["masks"] or [None] * len(found["labels"])
        columns = (
            found["labels"].tolist(),
            found["scores"].tolist(),
            found["boxes"].tolist(),
            masks,
        )
        for label, score, (left, top, right, bottom), mask in zip(*columns, strict=True):
            box = [left, top, right - left, bottom - top]
            entry = {
                "image_id": target["image_id"],
                "category_id": category_ids[label] if category_ids else label + 1,
                "bbox": [round(side, 2) for side in box],
                "score": round(score, 5),
            }
            results.append(entry if mask is None else {**entry, "segmentation": dict(mask)})
    return results


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those that are None, such as those of masks without masks."""
    return {key: value for key, value in values.items() if value is not None}


def _percent(value: float | None) -> str:
    return "none" if value is None or math.isnan(value) else f"{value:.1%}"
