"""The objects that a model found in one image: plain values, JSON, COCO results, a drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from convattn.names import first_of, shown
from convattn.runs.colours import class_colour
from convattn.runs.drawing import (
    Box,
    Drawn,
    LegendEntry,
    draw_objects,
    enlarged,
    palette_image,
    resized_mask,
    short_name,
    with_legend,
)
from convattn.runs.predictions import Prediction
from convattn.runs.rle import Rle, decode_mask

SHOWN_SCORE = 0.25  # objects with a lower score are neither drawn nor counted as confusions
_MOST_IN_CELL = 5
_MOST_IN_PALETTE = 254  # object numbers of a mask of 8 bits


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """An object that a model found.

    Args:
        name: of the class.
        label: class number from 0.
        score: in 0..1.
        box: left, top, right and bottom in pixels of the original image.
        mask: run-length encoding at the size of the original image; None without masks.
    """

    name: str
    label: int
    score: float
    box: Box
    mask: Rle | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; "mask" only if there is one."""
        values = {
            "name": self.name,
            "label": self.label,
            "score": self.score,
            "box": list(self.box),
        }
        return values if self.mask is None else {**values, "mask": dict(self.mask)}


@dataclass(frozen=True, kw_only=True)
class DetectionPrediction(Prediction):
    """The objects of one image.

    `to_dict` has the key "objects": a list of {"name", "label", "score", "box", "mask"}, the
    highest score first. A box is [x1, y1, x2, y2] in pixels of the original image; "mask" is
    COCO's run-length encoding with text counts, and absent for methods without masks.

    Args:
        objects: the highest score first.
        shown_score: objects with a lower score are not in the drawing, the table and the mask.
    """

    task = "detection"
    heading = "objects"

    objects: tuple[FoundObject, ...] = ()
    shown_score: float = SHOWN_SCORE

    @property
    def shown(self) -> tuple[FoundObject, ...]:
        """The objects that are drawn, the highest score first."""
        self.check()
        return tuple(item for item in self.objects if item.score >= self.shown_score)

    @property
    def shown_labels(self) -> Sequence[int]:
        """The class numbers whose colours are in the drawing."""
        return [item.label for item in self.shown]

    def _values(self) -> dict[str, Any]:
        return {"objects": [item.to_dict() for item in self.objects]}

    def _cells(self) -> Sequence[str]:
        texts = [f"{shown(item.name)} {item.score:.1%}" for item in self.shown]
        return [first_of(texts, _MOST_IN_CELL) or "none"]

    def _overlay(self, image: Image.Image) -> Image.Image:
        drawn = [drawn_object(item, self.size, image.size) for item in reversed(self.shown)]
        return draw_objects(image, drawn)

    def _drawn(self, image: Image.Image) -> Image.Image:
        return with_legend(self._overlay(enlarged(image)), object_legend(self.shown))

    def _masks(self) -> Image.Image:
        """Return a palette image: 0 is no object, 1 the one with the highest score, and so on."""
        if any(item.mask is None for item in self.objects):
            return super()._masks()
        numbers = np.zeros(self.size[::-1], np.uint8)
        kept = self.shown[:_MOST_IN_PALETTE]
        for number, item in reversed([*enumerate(kept, 1)]):
            if item.mask is not None:
                numbers[decode_mask(item.mask)] = number
        return palette_image(numbers)


def drawn_object(item: FoundObject, size: tuple[int, int], target: tuple[int, int]) -> Drawn:
    """Return an object as it is drawn on an image of another size.

    Args:
        item: an object of an image.
        size: width and height of that image.
        target: width and height of the picture.
    """
    x, y = target[0] / size[0], target[1] / size[1]
    left, top, right, bottom = item.box
    mask = None if item.mask is None else resized_mask(decode_mask(item.mask), target)
    box = (left * x, top * y, right * x, bottom * y)
    text = f"{short_name(item.name)} {item.score:.0%}"
    return Drawn(number=item.label, text=text, box=box, mask=mask)


def object_legend(objects: Sequence[FoundObject]) -> list[LegendEntry]:
    """Return an entry per class in the order of the class numbers, with the number of objects."""
    counts = Counter((item.label, item.name) for item in objects)
    return [
        LegendEntry(class_colour(label), name, f"({count})")
        for (label, name), count in sorted(counts.items())
    ]


def coco_results(
    prediction: DetectionPrediction, image_id: int, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return the objects as entries of a COCO results file.

    Args:
        prediction: the objects of one image.
        image_id: the id of the image in the annotation file.
        category_ids: the id of each class number; by default class numbers from 1.

    Returns:
        A dict per object: "image_id", "category_id", "bbox" as [x, y, width, height], "score" and,
        where the object has a mask, "segmentation".
    """
    prediction.check()
    entries = []
    for item in prediction.objects:
        left, top, right, bottom = item.box
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[item.label] if category_ids else item.label + 1,
            "bbox": [left, top, right - left, bottom - top],
            "score": item.score,
        }
        if item.mask is not None:
            entry["segmentation"] = dict(item.mask)
        entries.append(entry)
    return entries
