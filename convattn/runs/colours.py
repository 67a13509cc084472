"""A colour for each class number, the same in every picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Colour = tuple[int, int, int]

CLASSES = 255  # class numbers of a mask of 8 bits without the number for ignored pixels
_LEVELS = tuple(range(0, 256, 24))  # values of red, green and blue to choose from
_LIGHTNESS = (42, 90)  # of the colours; darker and lighter ones look like black and white
_GREY = 18  # chroma below which a colour looks grey
_FIRST: Colour = (240, 80, 40)


def class_colour(number: int) -> Colour:
    """Return the colour of a class; those of the first 150 class numbers differ visibly.

    Args:
        number: class number from 0; beyond 254 the colours repeat.
    """
    red, green, blue = _table()[number % CLASSES]
    return red, green, blue


def backgrounds(class_names: Sequence[str]) -> list[int]:
    """Return the numbers of classes named "background": their pixels are not coloured."""
    return [number for number, name in enumerate(class_names) if name.casefold() == "background"]


def ink_on(colour: Colour) -> Colour:
    """Return black or white, whichever is easier to read on a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """Return CIELAB values (N, 3) of sRGB colours (N, 3) in 0..255."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    )
    scaled = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@lru_cache
def _table() -> list[list[int]]:
    """Choose colours one by one, each as far as possible in CIELAB from those before it."""
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3)
    lab = to_lab(grid)
    low, high = _LIGHTNESS
    keep = (lab[:, 0] > low) & (lab[:, 0] < high) & (np.hypot(lab[:, 1], lab[:, 2]) > _GREY)
    grid, lab = grid[keep], lab[keep]
    chosen = [int(np.abs(grid - _FIRST).sum(1).argmin())]
    distance = np.linalg.norm(lab - lab[chosen[0]], axis=1)
    while len(chosen) < min(CLASSES, len(grid)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    colours: list[list[int]] = grid[np.resize(chosen, CLASSES)].tolist()
    return colours
