"""Painting of one shape: its outline, surface and shadow, and which pixels it covers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convattn.data.scenes.shapes import FIXED, TURN, UNIT, Outline, cosine, sine
from convattn.data.scenes.surfaces import choose_colors, choose_texture, shade

PIXEL = 64  # the length of a pixel's side
_SAMPLES = 2  # of a pixel's side, for smooth outlines; see `sum_of_four`
_FADES = 3  # steps from the edge to the middle of a shadow


class Place(NamedTuple):
    """Where a shape lies; lengths are 64ths of a pixel.

    Args:
        x: of its centre.
        y: of its centre.
        radius: of its frame.
        angle: by which it is turned.
        squeeze: its height for 256 of its width.
    """

    x: int
    y: int
    radius: int
    angle: int
    squeeze: int


class Cut(NamedTuple):
    """The pixels of a shape, those outside the image included.

    Args:
        left: column of the first.
        top: row of the first.
        cover: how many of its four samples each pixel has inside the shape, (H, W).
    """

    left: int
    top: int
    cover: np.ndarray

    def window(self, size: int, dx: int = 0, dy: int = 0) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the part of the image that the moved shape covers, and the cover there."""
        top, left = self.top + dy, self.left + dx
        rows = slice(min(max(top, 0), size), min(max(top + self.cover.shape[0], 0), size))
        columns = slice(min(max(left, 0), size), min(max(left + self.cover.shape[1], 0), size))
        part = self.cover[rows.start - top : rows.stop - top]
        return (rows, columns), part[:, columns.start - left : columns.stop - left]


def random_place(rng: np.random.Generator, size: int, low: int, high: int) -> Place:
    """Return a place whose centre is in the image, and whose radius has ``low`` to ``high`` pixels.

    Small radii are as frequent as large ones at each scale, hence more frequent than large ones.
    """
    x, y = (int(n) for n in rng.integers(0, size * PIXEL, 2))
    first, second = (int(n) for n in rng.integers(low * PIXEL, high * PIXEL + 1, 2))
    return Place(x, y, min(first, second), int(rng.integers(TURN)), int(rng.integers(180, 257)))


def cut(outline: Outline, place: Place) -> Cut:
    """Return the pixels of a shape."""
    reach = place.radius * 5 // 4 + PIXEL
    left, top = (place.x - reach) // PIXEL, (place.y - reach) // PIXEL
    length = 2 * reach // PIXEL + 2
    inside = outline(*_frame(place, left, top, length, _SAMPLES))
    return Cut(left, top, sum_of_four(inside.view(np.uint8)).astype(np.int64))


def sum_of_four(values: np.ndarray) -> np.ndarray:
    """Return the sum of each block of two by two values, (2H, 2W, ...) to (H, W, ...)."""
    rows = values[::2] + values[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def paint(
    rng: np.random.Generator,
    image: np.ndarray,
    name: str,
    place: Place,
    shape: Cut,
    light: tuple[int, int],
) -> None:
    """Paint a shape and its shadow on an image (H, W, 3) of int32."""
    _darken(image, shape, light, 1 + place.radius // (12 * PIXEL))
    texture, (first, second) = choose_texture(rng, name), choose_colors(rng, name)
    smallest = 3 * PIXEL * UNIT // place.radius  # three pixels
    period = max(smallest, int(rng.integers(UNIT // 5, UNIT // 2)))
    u, v = _frame(place, shape.left, shape.top, len(shape.cover), 1)
    weight = texture(u, v, period)[..., None]
    color = (first * (255 - weight) + second * weight) // 255
    if name == "ball":
        x, y = _round_frame(place, shape)
        color = shade(color, x, y, light)
    window, cover = shape.window(len(image))
    _, inner = Cut(shape.left, shape.top, color).window(len(image))
    image[window] += (np.minimum(inner, 255) - image[window]) * cover[..., None] // _SAMPLES**2


def _frame(
    place: Place, left: int, top: int, length: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates, in the frame of a shape, of points in a square of pixels."""
    steps = np.arange(length * samples) * (PIXEL // samples) + PIXEL // (2 * samples)
    x, y = steps[None, :] + left * PIXEL - place.x, steps[:, None] + top * PIXEL - place.y
    c, s = cosine(place.angle), sine(place.angle)
    u = (x * c + y * s >> FIXED) * UNIT // place.radius
    v = (y * c - x * s >> FIXED) * (UNIT * 256) // (place.radius * place.squeeze)
    return u, v


def _round_frame(place: Place, shape: Cut) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates that are not turned: light comes from one side of the whole scene."""
    upright = place._replace(angle=0, squeeze=256)
    return _frame(upright, shape.left, shape.top, len(shape.cover), 1)


def _darken(image: np.ndarray, shape: Cut, light: tuple[int, int], height: int) -> None:
    for step in range(_FADES):
        away = height + step
        dx, dy = (-(away * part * 4) // (2 * UNIT) for part in light)
        window, cover = shape.window(len(image), dx, dy)
        image[window] = image[window] * (256 - 20 * cover[..., None]) >> 8
