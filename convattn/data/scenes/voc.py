"""Scenes in the format of Pascal VOC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from convattn.data.scenes.files import save_image, save_lines, save_map
from convattn.data.scenes.scene import CLASS_NAMES, Scene, SceneObject

_BORDER = 255  # of an object: neither its class nor the background
_DIFFICULT = 60  # an object of which fewer percent are visible is difficult
_FIRST = {"train": 0, "val": 500_000}


def write_voc(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    """Write the pictures, XML files with boxes, masks and the lists in ``ImageSets``."""
    names = []
    for number, scene in enumerate(scenes):
        name = f"2012_{_FIRST[part] + number:06}"
        names.append(name)
        save_image(scene, folder / "JPEGImages" / f"{name}.jpg")
        save_map(_map(scene), folder / "SegmentationClass" / f"{name}.png", _palette())
        path = folder / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        tree = ET.ElementTree(_annotation(scene, f"{name}.jpg"))
        ET.indent(tree, "\t")
        tree.write(path, encoding="utf-8")
    for task in ("Main", "Segmentation"):
        save_lines(names, folder / "ImageSets" / task / f"{part}.txt")
    save_lines(["background", *CLASS_NAMES], folder / "classes.txt")


def _annotation(scene: Scene, file: str) -> ET.Element:
    height, width = scene.image.shape[:2]
    root = ET.Element("annotation")
    _add(root, {"folder": "VOC2012", "filename": file})
    _add(ET.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _add(root, {"segmented": 1})
    for thing in scene.objects:
        _add_object(root, thing)
    return root


def _add_object(root: ET.Element, thing: SceneObject) -> None:
    element = ET.SubElement(root, "object")
    difficult = thing.crowd or thing.visible < _DIFFICULT
    _add(element, {"name": thing.name, "pose": "Unspecified", "truncated": int(thing.truncated)})
    _add(element, {"occluded": int(thing.visible < 100), "difficult": int(difficult)})
    x1, y1, x2, y2 = thing.box
    corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # the first pixel is 1
    _add(ET.SubElement(element, "bndbox"), corners)


def _add(element: ET.Element, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        ET.SubElement(element, name).text = str(value)


def _map(scene: Scene) -> np.ndarray:
    """Return the class of each pixel, and `_BORDER` where two different pixels meet."""
    found = scene.class_map()
    border = np.zeros(found.shape, bool)
    for axis in (0, 1):
        first, second = np.moveaxis(found, axis, 0)[:-1], np.moveaxis(found, axis, 0)[1:]
        differs = first != second
        np.moveaxis(border, axis, 0)[:-1] |= differs
        np.moveaxis(border, axis, 0)[1:] |= differs
    found[border] = _BORDER
    return found


def _palette() -> bytes:
    """Return VOC's 256 colours: bits of a number are spread over red, green and blue."""
    number, color = np.arange(256), np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            color[:, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return color.astype(np.uint8).tobytes()
