"""The content of each section of a report, computed from a run as plain data for the template."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from convattn.explain.slot_pictures import input_picture, slot_picture
from convattn.explain.slots import last_of_each_size, slot_maps
from convattn.names import shown
from convattn.runs.results import PredictionRow, Run

_THUMBNAIL = 192
# A map of 2 x 2 positions has nothing to show.
_SMALLEST_MAP = 4


@dataclass(frozen=True)
class ClassRow:
    """The accuracy of one class, and the class that is most often predicted instead."""

    name: str
    images: int
    accuracy: float
    confused_with: str = ""


@dataclass(frozen=True)
class ConfusedPair:
    """A true class and a wrong prediction of it: number and share of the images of that class."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction in words, with the image if it can be read."""

    prediction: PredictionRow
    true: str
    predicted: str
    picture: str | None


@dataclass(frozen=True)
class SlotExample:
    """An image whose slots are shown."""

    true: str
    picture: str


@dataclass(frozen=True)
class SlotStage:
    """The slots of one GLMix: a picture per example, and the mean weight of the strongest slot."""

    module: str
    slots: int
    height: int
    width: int
    strongest: float
    pictures: list[str]


@dataclass(frozen=True)
class SlotSection:
    """Slot pictures of a few images at a few stages."""

    examples: list[SlotExample]
    stages: list[SlotStage]


def class_rows(run: Run) -> list[ClassRow]:
    """Return a row per class in the order of the labels, without classes that have no images."""
    rows = []
    for label, entry in enumerate(run.evaluation.get("per_class", [])):
        if entry["images"]:
            worst = max(_confusions_of(run, label), key=lambda p: p.count, default=None)
            other = worst.predicted if worst else ""
            rows.append(ClassRow(shown(entry["name"]), entry["images"], entry["accuracy"], other))
    return rows


def confused_pairs(run: Run, limit: int = 10) -> list[ConfusedPair]:
    """Return the pairs of classes that are confused most often."""
    pairs = [pair for label in range(len(run.confusion)) for pair in _confusions_of(run, label)]
    return sorted(pairs, key=lambda p: (-p.count, -p.share))[:limit]


def mistakes(run: Run, image: Callable[[int], Image.Image] | None, limit: int) -> list[Mistake]:
    """Return the most confident mistakes, with thumbnails of the images that can be read."""
    return [
        Mistake(
            prediction=p,
            true=run.class_name(p.label),
            predicted=run.class_name(p.predicted),
            picture=_thumbnail(image, p.index) if image else None,
        )
        for p in run.mistakes[:limit]
    ]


def slot_section(
    run: Run,
    model: nn.Module,
    image: Callable[[int], Image.Image],
    preprocess: Callable[[Image.Image], Tensor],
    limit: int,
) -> SlotSection | None:
    """Return slot pictures of the first image of each class; None without slots or images."""
    chosen = _first_of_each_class(run, limit)
    if not chosen:
        return None
    weight = next(model.parameters())
    x = torch.stack([preprocess(image(p.index)) for p in chosen])
    maps = last_of_each_size(slot_maps(model, x.to(weight.device, weight.dtype)))
    stages = [_stage(n, m, x) for n, m in maps.items() if min(m.shape[-2:]) >= _SMALLEST_MAP]
    examples = [
        SlotExample(run.class_name(p.label), data_uri(input_picture(picture)))
        for p, picture in zip(chosen, x, strict=True)
    ]
    return SlotSection(examples, stages) if stages else None


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """Return the environment as text, without the starts of the run."""
    return [(k.replace("_", " "), _text(v)) for k, v in run.environment.items() if k != "starts"]


def data_uri(picture: Image.Image) -> str:
    """Return a picture as text that a page can hold."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _confusions_of(run: Run, label: int) -> list[ConfusedPair]:
    if label >= len(run.confusion):
        return []
    counts = run.confusion.row(label)
    images = sum(counts.values())
    return [
        ConfusedPair(run.class_name(label), run.class_name(other), count, count / images)
        for other, count in sorted(counts.items())
        if other != label
    ]


def _thumbnail(image: Callable[[int], Image.Image], index: int) -> str | None:
    """Return an image as a thumbnail, enlarged without smoothing; None if it cannot be read."""
    try:
        picture = image(index).convert("RGB")
    except Exception:  # a file that is gone or damaged leaves its place in the page empty
        return None
    scale = _THUMBNAIL / max(picture.size)
    if scale > 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return data_uri(picture)


def _first_of_each_class(run: Run, limit: int) -> list[PredictionRow]:
    first: dict[int, PredictionRow] = {}
    for prediction in run.predictions or []:
        first.setdefault(prediction.label, prediction)
    return [first[label] for label in sorted(first)][:limit]


def _stage(name: str, maps: Tensor, x: Tensor) -> SlotStage:
    slots, height, width = maps.shape[1:]
    strongest = maps.amax(dim=1).mean().item()
    pictures = [data_uri(slot_picture(*pair)) for pair in zip(maps, x, strict=True)]
    return SlotStage(name, slots, height, width, strongest, pictures)
