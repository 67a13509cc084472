"""Small data sets of objects in the formats of annotation files, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
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


def voc_object(name: str = "cat", box: Sequence[Any] = (3, 4, 12, 11), more: str = "") -> str:
    """Return the XML of an object; the box is xmin, ymin, xmax, ymax, counted from 1."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def write_voc(
    root: Path,
    parts: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    size: str = "<size><width>40</width><height>30</height><depth>3</depth></size>",
    lists: bool = True,
) -> Path:
    """Write a data set in the format of Pascal VOC.

    Args:
        root: the folder.
        parts: for each part, the names of its images with the XML of their objects.
        size: XML of the sizes.
        lists: whether the parts are listed in ImageSets/Main.
    """
    for part, images in parts.items():
        for number, (name, objects) in enumerate(images.items()):
            write_picture(root / "JPEGImages" / f"{name}.jpg", seed=number)
            text = f"<annotation>{size}{''.join(objects)}</annotation>"
            file = root / "Annotations" / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        if lists:
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(images) + "\n")
    return root


def write_yolo(
    root: Path,
    parts: Mapping[str, Mapping[str, str | None]],
    names: object = ("cat", "dog", "owl"),
    **values: object,
) -> Path:
    """Write a data set in the format of Ultralytics YOLO, and return its YAML file.

    Args:
        root: the folder.
        parts: for each part, the names of its images with the text of their labels, None for an
            image without a file of labels.
        names: of the classes.
        **values: further keys of the YAML file.
    """
    for part, images in parts.items():
        for number, (name, text) in enumerate(images.items()):
            write_picture(root / "images" / part / f"{name}.jpg", seed=number)
            file = root / "labels" / part / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                file.write_text(text)
    names = list(names) if isinstance(names, tuple) else names
    content = {"path": ".", "names": names, **{p: f"images/{p}" for p in parts}, **values}
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return file
