"""Small data sets of objects in the formats of annotation files, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width and height of the images
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 18, "name": "owl"}]


def write_picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Write an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def images_of(count: int, first: int = 1) -> list[dict[str, Any]]:
    """Return the entries of ``count`` images, with ids from ``first``."""
    return [
        {"id": number, "file_name": f"{number:04}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for number in range(first, first + count)
    ]


def annotation(number: int, image: int, **values: Any) -> dict[str, Any]:
    """Return an annotation with a box, which ``values`` may change."""
    box = [2, 3, 10, 8]
    return {"id": number, "image_id": image, "category_id": 7, "bbox": box, "iscrowd": 0, **values}


def write_coco(
    root: Path,
    annotations: Sequence[Any],
    *,
    count: int = 4,
    part: str = "train2017",
    first: int = 1,
    images: Sequence[Any] | None = None,
    categories: Sequence[Any] = CATEGORIES,
    pictures: bool = True,
) -> Path:
    """Write a part of a data set in COCO's format, and return the annotation file."""
    entries = images_of(count, first) if images is None else images
    for number, entry in enumerate(entries if pictures else []):
        write_picture(root / part / entry["file_name"], seed=number)
    file = root / "annotations" / f"instances_{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": entries, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file
