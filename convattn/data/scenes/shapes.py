"""Outlines of shapes and of clutter, in whole numbers: every machine computes the same pixels.

An outline is a function of the coordinates ``u`` and ``v`` of points in the frame of the shape,
where `UNIT` is its radius; it returns whether each point is inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

UNIT = 1024
TURN = 1024  # angles are whole numbers; this one is a full turn
FIXED = 14  # bits after the point of sines and cosines
_SINES = tuple(round(math.sin(2 * math.pi * a / TURN) * 2**FIXED) for a in range(TURN))

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def sine(angle: int) -> int:
    """Return the sine of an angle, times 2 ** `FIXED`."""
    return _SINES[angle % TURN]


def cosine(angle: int) -> int:
    """Return the cosine of an angle, times 2 ** `FIXED`."""
    return _SINES[(angle + TURN // 4) % TURN]


def _within(u: np.ndarray, v: np.ndarray, radius: int, u0: int = 0, v0: int = 0) -> np.ndarray:
    return (u - u0) ** 2 + (v - v0) ** 2 <= radius**2


def _depth(u: np.ndarray, v: np.ndarray, sides: int) -> list[np.ndarray]:
    """Return how far the points lie along the normals of a regular polygon's sides."""
    angles = (TURN // 4 + TURN * k // sides for k in range(sides))
    return [(u * cosine(a) + v * sine(a)) >> FIXED for a in angles]


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _within(u, v, 960)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) <= 800


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum.reduce(_depth(u, v, 3)) <= 540


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The five lines of a pentagram: its points are on the inner side of at least four.
    inside = [(along <= 360).view(np.uint8) for along in _depth(u, v, 5)]
    return np.add.reduce(inside) >= 4


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _within(u, v, 1000) & ~_within(u, v, 580)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = abs(u), abs(v)
    return (np.maximum(u, v) <= 960) & (np.minimum(u, v) <= 310)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _within(u, v, 1024) & ~_within(u, v, 850, 480)


def _blob(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    lobes = _within(u, v, 520, 420, 130) | _within(u, v, 380, -560, 240)
    return lobes | _within(u, v, 450, -120, -470) | _within(u, v, 300)


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) <= 1024) & (abs(v) <= 90)


def _arc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _within(u, v, 1000) & ~_within(u, v, 880) & (u > 150)


SHAPES: Mapping[str, Outline] = {
    "disc": _disc,
    "ball": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
}
CLUTTER: Mapping[str, Outline] = {"blob": _blob, "bar": _bar, "arc": _arc}
