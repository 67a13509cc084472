"""Scenes in the format of YOLO: a text file for each picture, with a polygon for each object."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convattn.data.scenes.contours import find_contours, joined
from convattn.data.scenes.files import save_image, save_lines
from convattn.data.scenes.scene import CLASS_NAMES, Scene, SceneObject


def write_yolo(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    """Write ``data.yaml``, ``images/PART`` and ``labels/PART``."""
    names = [f"  {number}: {name}" for number, name in enumerate(CLASS_NAMES)]
    save_lines(["train: images/train", "val: images/val", "names:", *names], folder / "data.yaml")
    for number, scene in enumerate(scenes):
        save_image(scene, folder / "images" / part / f"{number:06}.jpg")
        lines = [_line(thing) for thing in scene.objects]
        save_lines(lines, folder / "labels" / part / f"{number:06}.txt")


def _line(thing: SceneObject) -> str:
    """Return the class and one polygon; lines of no width join the parts of an object."""
    height, width = thing.mask.shape
    points = joined(find_contours(thing.mask)) / (width, height)
    return f"{thing.label} " + " ".join(f"{value:.6f}" for value in points.ravel())
