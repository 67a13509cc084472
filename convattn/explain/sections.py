"""Parts of a report that sections of several tasks have: pictures, confusions, slot maps."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.explain import figures
from convattn.explain.page import (
    Beside,
    Chart,
    Gallery,
    Grid,
    Heading,
    Legend,
    Line,
    Picture,
    Pictures,
    Section,
    Table,
    TableColumn,
    Text,
    number,
    percent,
)
from convattn.explain.slot_pictures import input_picture, slot_picture
from convattn.explain.slots import last_of_each_size, slot_maps
from convattn.names import shown
from convattn.runs.confusion import Confusion
from convattn.runs.drawing import side_by_side
from convattn.runs.files import DamagedFileError
from convattn.runs.results import Run
from convattn.runs.targets import counts_legend, draw_target, target_counts

_THUMBNAIL = 192
# A map of 2 x 2 positions has nothing to show.
_SMALLEST_MAP = 4
_PAIRS = 10
_GROUP = 4  # images of each group of predictions
_SIDE, _QUALITY = 320, 88  # longer side of a picture in pixels, and its quality as JPEG


def read_confusion(run: Run) -> Confusion:
    """Return the counts of an evaluation by (true class, predicted class).

    Raises:
        DamagedFileError: the evaluation has no such counts.
    """
    try:
        return Confusion.from_json(run.evaluation.get("confusion", []))
    except ValueError as error:
        raise DamagedFileError(run.folder / "evaluation.json", str(error)) from error


def confused_pairs(
    confusion: Confusion, names: Sequence[str], limit: int = _PAIRS
) -> list[tuple[str, str, int, float]]:
    """Return the pairs of classes that are confused most often.

    Args:
        confusion: counts by (true class, predicted class).
        names: in the order of the class numbers.
        limit: at most so many pairs.

    Returns:
        True class, predicted class, count, and share of the true class.
    """
    pairs = []
    for label in range(len(confusion)):
        counts = confusion.row(label)
        total = sum(counts.values())
        pairs += [
            (names[label], names[other], count, count / total)
            for other, count in sorted(counts.items())
            if other != label
        ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3]))[:limit]


def confusion_section(
    confusion: Confusion,
    names: Sequence[str],
    *,
    unit: str,
    explained: str,
    shares: bool = False,
) -> Section | None:
    """Return a section with a confusion matrix and the most confused pairs; None without counts.

    Args:
        confusion: counts by (true class, predicted class).
        names: in the order of the class numbers.
        unit: what is counted, such as "Images".
        explained: what the rows and the columns are.
        shares: whether the numbers in the matrix are shares of the rows in per cent.
    """
    if not len(confusion):
        return None
    svg = figures.to_svg(figures.confusion_figure(confusion, names, shares=shares))
    pairs = confused_pairs(confusion, names)
    columns = (
        TableColumn("True", "name"),
        TableColumn("Predicted"),
        TableColumn(unit, "count"),
        TableColumn("Share", "percent"),
    )
    found: Any = Table(columns, pairs, "Most confused pairs")
    alt = f"Confusion matrix of {len(confusion)} classes"
    return Section(
        "confusion",
        "Confusion matrix",
        [
            Text(explained),
            Beside(
                [Chart(alt, svg, "matrix")],
                [found if pairs else Text("No two classes are confused.")],
            ),
        ],
    )


@dataclass(frozen=True)
class Example:
    """An image of the evaluation, and what is said about its prediction.

    Args:
        index: its number in the evaluation.
        path: of its file, "" without a file.
        quality: of the prediction; the smallest is the worst.
        lines: the lines under the picture.
    """

    index: int
    path: str
    quality: float
    lines: Sequence[Line]


def truth_section(
    run: Run, pictures: Pictures | None, examples: Sequence[Example], explained: str
) -> Section | None:
    """Return predictions beside the truth: of the worst, the best, and random images.

    Args:
        run: has the names of the classes.
        pictures: the images, their targets, and the model's predictions.
        examples: all images of the evaluation.
        explained: what the pictures show.
    """
    if pictures is None or not examples:
        return None
    blocks: list[Any] = [Text(explained)]
    found: Counter[int] = Counter()
    for title, chosen in _chosen(examples):
        shown_pictures = [_beside_truth(run, pictures, e, found) for e in chosen]
        blocks += [Heading(title), Gallery(shown_pictures, is_wide=True)]
    entries = counts_legend(found, run.class_names)
    colours = [("rgb({}, {}, {})".format(*entry.colour), entry.name) for entry in entries]
    blocks.insert(1, Legend(colours))
    return Section("predictions", "Predictions beside the truth", blocks)


def _chosen(examples: Sequence[Example]) -> list[tuple[str, Sequence[Example]]]:
    """Return groups of images with their titles; few images are one group, the worst first."""
    ordered = sorted(examples, key=lambda e: (e.quality, e.index))
    if len(ordered) <= 3 * _GROUP:
        return [("All images, the worst first", ordered)]
    rest = ordered[_GROUP:-_GROUP]
    picked = np.random.default_rng(0).choice(len(rest), _GROUP, replace=False)
    return [
        ("The worst", ordered[:_GROUP]),
        ("Random images", [rest[place] for place in sorted(picked.tolist())]),
        ("The best", ordered[: -_GROUP - 1 : -1]),
    ]


def _beside_truth(run: Run, pictures: Pictures, example: Example, found: Counter[int]) -> Picture:
    """Return the truth and the prediction of an image; count the classes that are drawn."""
    name = shown(example.path or f"image {example.index}")
    alt = f"{name}: truth and prediction"
    if pictures.target is None or pictures.predict is None:
        return Picture(alt, None, name, example.lines)
    try:
        place = pictures.number(example.index, example.path)
        image, target = pictures.image(place), pictures.target(place)
        (prediction,) = pictures.predict([place])
    except (OSError, ValueError):  # the image is gone or damaged: its place stays empty
        return Picture(alt, None, name, example.lines)
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    found.update(target_counts(target))
    found.update(prediction.shown_labels)
    truth = draw_target(picture, target, run.class_names, image.size)
    row = side_by_side([("truth", truth), ("prediction", prediction.overlay(picture))])
    return Picture(alt, data_uri(row, _QUALITY), name, example.lines)


def slot_section(pictures: Pictures, examples: Sequence[tuple[int, str]]) -> Section | None:
    """Return the slot maps of a few images; None without a model, without slots or images.

    Args:
        pictures: the images and the model.
        examples: number of each image, and what it shows.
    """
    if pictures.model is None or pictures.preprocess is None or not examples:
        return None
    weight = next(pictures.model.parameters())
    x = torch.stack([pictures.preprocess(pictures.image(index)) for index, _ in examples])
    maps = last_of_each_size(slot_maps(pictures.model, x.to(weight.device, weight.dtype)))
    titles = [title for _, title in examples]
    rows = [
        _slot_row(name, found, x, titles)
        for name, found in maps.items()
        if min(found.shape[-2:]) >= _SMALLEST_MAP
    ]
    if not rows:
        return None
    inputs = [
        Picture(f"Input image: {title}", data_uri(input_picture(picture)), title)
        for title, picture in zip(titles, x, strict=True)
    ]
    explained = (
        "This network pools each image into a few vectors, the slots, and adds a weighted sum of "
        "them to each position. A colour is a slot: it marks the positions where that slot has the "
        "largest weight. The number beside each row is the mean of the largest weight over all "
        "positions."
    )
    grid = Grid([("Input", "as the network sees it", "", inputs), *rows])
    return Section("slots", "Slot maps", [Text(explained), grid])


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """Return the environment as text, without the starts of the run."""
    return [(k.replace("_", " "), _text(v)) for k, v in run.environment.items() if k != "starts"]


def data_uri(picture: Image.Image, quality: int | None = None) -> str:
    """Return a picture as text that a page can hold: PNG, or JPEG with a quality of 1 to 95."""
    file = io.BytesIO()
    if quality is None:
        picture.save(file, format="PNG", optimize=True)
    else:
        picture.save(file, format="JPEG", quality=quality)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail(image: Callable[[], Image.Image]) -> str | None:
    """Return an image as a thumbnail, enlarged without smoothing; None if it cannot be read."""
    try:
        picture = image().convert("RGB")
    except Exception:  # a file that is gone or damaged leaves its place in the page empty
        return None
    scale = _THUMBNAIL / max(picture.size)
    if scale > 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return data_uri(picture)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _slot_row(
    name: str, maps: Tensor, x: Tensor, titles: Sequence[str]
) -> tuple[str, str, str, list[Picture]]:
    slots, height, width = maps.shape[1:]
    strongest = maps.amax(dim=1).mean().item()
    pictures = [
        Picture(f"Slot map of {name}: {title}", data_uri(slot_picture(*pair)), title)
        for title, pair in zip(titles, zip(maps, x, strict=True), strict=True)
    ]
    text = (
        f"{slots} slots; largest weight {percent(strongest)} (equal weights: {percent(1 / slots)})"
    )
    heading = f"{number(height)} \N{MULTIPLICATION SIGN} {number(width)} positions"
    return heading, text, name, pictures
