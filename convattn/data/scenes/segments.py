"""Scenes with a class for each pixel: in the format of ADE20K, and as plain folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from convattn.data.scenes.files import save_image, save_lines, save_map
from convattn.data.scenes.scene import CLASS_NAMES, Scene

_NAMES = ("background", *CLASS_NAMES)
_FOLDERS = {"train": "training", "val": "validation"}


def write_ade20k(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    """Write ``images``, ``annotations`` and the list of classes; clutter is not labelled."""
    rows = [f"{number}\t{1 / len(_NAMES):.4f}\t0\t0\t0\t{n}" for number, n in enumerate(_NAMES, 1)]
    save_lines(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows], folder / "objectInfo150.txt")
    for number, scene in enumerate(scenes, 1):
        name = f"ADE_{part}_{number:08}"
        save_image(scene, folder / "images" / _FOLDERS[part] / f"{name}.jpg")
        numbers = np.where(scene.clutter, 0, scene.class_map() + 1).astype(np.uint8)
        save_map(numbers, folder / "annotations" / _FOLDERS[part] / f"{name}.png")


def write_folder(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    """Write ``images/PART``, ``masks/PART`` and ``classes.txt``."""
    save_lines(list(_NAMES), folder / "classes.txt")
    for number, scene in enumerate(scenes):
        save_image(scene, folder / "images" / part / f"{number:06}.jpg")
        save_map(scene.class_map(), folder / "masks" / part / f"{number:06}.png")


def write_classes(folder: Path, part: str, scenes: Iterable[Scene]) -> None:
    """Write ``images/PART/CLASS``, and masks of 0 and 255 in ``masks/PART/CLASS``."""
    for number, scene in enumerate(scenes):
        (thing,) = scene.objects
        place = Path(part, thing.name, f"{number:06}")
        save_image(scene, folder / "images" / place.with_suffix(".jpg"))
        save_map(thing.mask * np.uint8(255), folder / "masks" / place.with_suffix(".png"))
