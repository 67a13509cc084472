"""Scenes in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convattn.data.scenes.contours import compressed, find_contours, run_lengths
from convattn.data.scenes.files import save_image
from convattn.data.scenes.scene import CLASS_NAMES, Scene, SceneObject

CATEGORY_IDS = (1, 2, 4, 5, 8, 11, 13, 16)  # with gaps, as COCO's are
_FIRST_ID = {"train": 9, "val": 139}


def write_coco(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    """Write ``annotations/instances_PART2017.json`` and the pictures in ``PART2017``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        image_id = 1000 * number + _FIRST_ID[part] + number * number % 7
        name = f"{image_id:012}.jpg"
        save_image(scene, folder / f"{part}2017" / name)
        height, width = scene.image.shape[:2]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for place, thing in enumerate(scene.objects):
            entry = {"id": 100 * image_id + 3 * place, "image_id": image_id}
            annotations.append(entry | _annotation(thing))
    content = {
        "info": {"description": "generated scenes", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
        ],
    }
    path = folder / "annotations" / f"instances_{part}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _annotation(thing: SceneObject) -> dict[str, Any]:
    x1, y1, x2, y2 = thing.box
    return {
        "category_id": CATEGORY_IDS[thing.label],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": thing.area,
        "iscrowd": int(thing.crowd),
        "segmentation": _segmentation(thing),
    }


def _segmentation(thing: SceneObject) -> Any:
    """Return polygons, or run lengths for crowds and for masks with holes."""
    size = list(thing.mask.shape)
    if thing.crowd:
        return {"size": size, "counts": run_lengths(thing.mask)}
    contours = find_contours(thing.mask)
    if any(contour.area < 0 for contour in contours):
        return {"size": size, "counts": compressed(run_lengths(thing.mask))}
    return [contour.points.ravel().tolist() for contour in contours]
