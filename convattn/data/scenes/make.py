"""Scenes from seeds."""

from __future__ import annotations

import numpy as np

from convattn.data.scenes.painter import Painter
from convattn.data.scenes.scene import CLASS_NAMES, Scene

MIN_SIZE, MAX_SIZE = 64, 4096
_CROWDS = 12  # one scene of so many has a crowd
_EASY_MOST = 3  # objects of an easy scene


def make_scene(
    index: int,
    *,
    size: int = 192,
    seed: int = 0,
    held_out: bool = False,
    most: int = 6,
    crowds: bool = False,
    easy: bool = False,
) -> Scene:
    """Make a scene; the same arguments give the same pixels on every machine.

    Args:
        index: the number of the scene.
        size: width and height.
        seed: scenes of different seeds differ.
        held_out: whether the scene lies over photographs that training scenes never lie over.
        most: of objects. One scene of 32 has none.
        crowds: whether some scenes have a crowd: a group of small shapes that is one object.
        easy: whether a scene has one to three large objects, and neither other shapes nor crowds.

    Raises:
        ValueError: a number is out of range.
    """
    check_number("most", most, 1, 50)
    rng = _random(index, size, seed, 2 * int(held_out))
    painter = Painter(rng, size, held_out)
    if easy:
        for _ in range(1 + int(rng.integers(min(most, _EASY_MOST)))):
            painter.add(int(rng.integers(len(CLASS_NAMES))), size // 6, size * 3 // 8)
        return painter.finish()
    if crowds and not rng.integers(_CROWDS):
        painter.add_crowd()
    for _ in range(int(rng.integers(4))):
        painter.add_clutter()
    for _ in range(1 + int(rng.integers(most)) if rng.integers(32) else 0):
        painter.add(int(rng.integers(len(CLASS_NAMES))), size // 12, size * 3 // 10)
    return painter.finish()


def make_portrait(
    index: int, label: int, *, size: int = 192, seed: int = 0, held_out: bool = False
) -> Scene:
    """Make a scene with one object, which is large and lies near the middle.

    Args:
        index: the number of the scene.
        label: the number of the object's class.
        size: width and height.
        seed: scenes of different seeds differ.
        held_out: as for `make_scene`.

    Raises:
        ValueError: a number is out of range.
    """
    check_number("label", label, 0, len(CLASS_NAMES) - 1)
    rng = _random(index, size, seed, 1 + 2 * int(held_out))
    painter = Painter(rng, size, held_out)
    for _ in range(1 + int(rng.integers(4))):
        painter.add_clutter()
    painter.add(label, size // 6, size // 3, margin=size // 3)
    return painter.finish()


def check_number(name: str, value: int, least: int, most: int) -> None:
    """Raise `ValueError` unless a number is from ``least`` to ``most``."""
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:,} to {most:,}, got {value:,}")


def _random(index: int, size: int, seed: int, kind: int) -> np.random.Generator:
    """Return the random numbers of one scene, which depend on no other scene."""
    check_number("index", index, 0, 2**63 - 1)
    check_number("size", size, MIN_SIZE, MAX_SIZE)
    check_number("seed", seed, 0, 2**63 - 1)
    return np.random.default_rng([seed, kind, index])
