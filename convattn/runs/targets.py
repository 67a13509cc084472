"""The targets of a data set drawn on their images: classes, boxes, masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from convattn.runs.colours import backgrounds, class_colour
from convattn.runs.drawing import (
    IGNORED,
    Drawn,
    LegendEntry,
    draw_classes,
    draw_objects,
    resized_mask,
    short_name,
)
from convattn.runs.labels import draw_label


def draw_target(
    image: Image.Image, target: Any, class_names: Sequence[str], size: tuple[int, int]
) -> Image.Image:
    """Return an RGB image with its target drawn on it.

    Boxes of crowds, and of objects that count as neither right nor wrong, are dashed.

    Args:
        image: in mode "RGB", of any size.
        target: a class number; a mask of class numbers (H, W); or a dict with "boxes" (N, 4) as
            x1, y1, x2, y2, "labels" (N,), and optional "masks" (N, H, W) and "crowd" (N,).
        class_names: in the order of the class numbers.
        size: width and height of the image that the boxes belong to.
    """
    if isinstance(target, Mapping):
        return draw_objects(image, target_objects(target, class_names, size, image.size))
    if np.ndim(target) == 0:
        return draw_label(image, class_names[int(target)], None)
    return draw_classes(image, resized_mask(np.asarray(target, np.uint8), image.size), class_names)


def target_objects(
    target: Mapping[str, Any],
    class_names: Sequence[str],
    size: tuple[int, int],
    drawn_size: tuple[int, int],
) -> list[Drawn]:
    """Return the objects of a target as they are drawn on an image of another size.

    Args:
        target: see `draw_target`.
        class_names: in the order of the class numbers.
        size: width and height of the image that the boxes belong to.
        drawn_size: width and height of the picture.
    """
    scale = np.array(drawn_size * 2) / np.array(size * 2)
    boxes = np.asarray(target["boxes"], np.float64) * scale
    labels = np.asarray(target["labels"])
    masks = target.get("masks")
    crowd = np.asarray(target.get("crowd", np.zeros(len(labels))), bool)
    objects = [
        Drawn(
            number=int(label),
            text=short_name(class_names[int(label)]),
            box=(box[0], box[1], box[2], box[3]),
            mask=None
            if masks is None
            else resized_mask(np.asarray(masks[place]).astype(bool), drawn_size),
            dashed=bool(crowd[place]),
        )
        for place, (label, box) in enumerate(zip(labels, boxes.tolist(), strict=True))
    ]
    # Small objects are drawn last: they may lie within large ones.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return [objects[place] for place in np.argsort(-areas, kind="stable")]


def target_counts(target: Any) -> Counter[int]:
    """Return the number of objects, images or pixels of each class number in a target."""
    if isinstance(target, Mapping):
        return Counter(np.asarray(target["labels"]).tolist())
    if np.ndim(target) == 0:
        return Counter([int(target)])
    counts = np.bincount(np.asarray(target, np.uint8).ravel())[:IGNORED]
    return Counter({int(label): int(counts[label]) for label in np.flatnonzero(counts)})


def counts_legend(counts: Mapping[int, int], class_names: Sequence[str]) -> list[LegendEntry]:
    """Return an entry per class with a count and a colour, in the order of the class numbers."""
    clear = backgrounds(class_names)
    coloured = [n for n in sorted(counts) if counts[n] and n not in clear]
    return [LegendEntry(class_colour(n), class_names[n]) for n in coloured]
