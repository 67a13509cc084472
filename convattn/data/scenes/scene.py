"""A scene and its objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convattn.data.scenes.shapes import SHAPES

CLASS_NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene.

    Args:
        label: the number of its class in `CLASS_NAMES`.
        mask: its visible pixels, bool (H, W).
        visible: percent of its pixels in the image that no other shape hides.
        truncated: whether a part of it is outside the image.
        crowd: whether it is a group of shapes that are too small to label one by one.
    """

    label: int
    mask: np.ndarray
    visible: int = 100
    truncated: bool = False
    crowd: bool = False

    @property
    def name(self) -> str:
        """The name of its class."""
        return CLASS_NAMES[self.label]

    @property
    def area(self) -> int:
        """The number of its visible pixels."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest x1, y1, x2, y2 around its visible pixels; x2 and y2 are outside."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Scene:
    """A picture and its objects.

    Args:
        image: RGB, uint8 (H, W, 3).
        objects: those that a person can see.
        clutter: the visible pixels of shapes of no class, bool (H, W).
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    clutter: np.ndarray

    def class_map(self) -> np.ndarray:
        """Return for each pixel 0 for the background, or 1 + the class; uint8 (H, W)."""
        found = np.zeros(self.image.shape[:2], np.uint8)
        for thing in self.objects:
            found[thing.mask] = 1 + thing.label
        return found
