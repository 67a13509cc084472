"""A scene while it is painted."""

from __future__ import annotations

import numpy as np

from convattn.data.scenes.backgrounds import background
from convattn.data.scenes.canvas import PIXEL, Cut, Place, cut, paint, random_place
from convattn.data.scenes.scene import CLASS_NAMES, Scene, SceneObject
from convattn.data.scenes.shapes import CLUTTER, SHAPES

_NOBODY, _CLUTTER = -1, -2
_TRIES = 6  # to find a place for a shape
_VISIBLE = 45  # percent of a shape that the others must leave visible
_IN_IMAGE = 60  # percent of a shape that must be in the image


class Painter:
    """Paint a scene, from the lowest to the uppermost shape.

    Args:
        rng: where the random numbers come from.
        size: width and height of the image.
        held_out: whether the scene is held out.
    """

    def __init__(self, rng: np.random.Generator, size: int, held_out: bool) -> None:
        self._rng = rng
        self._size = size
        self._image = background(rng, size, held_out=held_out)
        self._owner = np.full((size, size), _NOBODY, np.int16)  # the uppermost shape
        self._labels: list[int] = []
        self._areas: list[int] = []  # of all pixels in the image, also hidden ones
        self._truncated: list[bool] = []
        self._crowds: set[int] = set()
        sideways, up = int(rng.integers(-460, 461)), int(rng.integers(300, 461))
        self._light = (sideways, -up)

    def add(self, label: int, low: int, high: int, margin: int = 0) -> None:
        """Paint an object where it fits."""
        name = CLASS_NAMES[label]
        for _ in range(_TRIES):
            place = random_place(self._rng, self._size, low, high)
            place = _moved_in(place, self._size, margin)
            shape = cut(SHAPES[name], place)
            if self._fits(shape):
                self._paint(name, place, shape, self._new(label, shape))
                return

    def add_clutter(self) -> None:
        """Paint a shape of no class where it fits."""
        name = tuple(CLUTTER)[self._rng.integers(len(CLUTTER))]
        place = random_place(self._rng, self._size, self._size // 14, self._size // 4)
        shape = cut(CLUTTER[name], place)
        if self._fits(shape, in_image=0):
            self._paint(name, place, shape, _CLUTTER)

    def add_crowd(self) -> None:
        """Paint a group of small shapes of one class, which is one object."""
        rng, size = self._rng, self._size
        label, middle = int(rng.integers(len(CLASS_NAMES))), random_place(rng, size // 2, 1, 2)
        name, owner = CLASS_NAMES[label], len(self._labels)
        for _ in range(int(rng.integers(8, 16))):
            place = random_place(rng, size // 3, max(3, size // 40), max(4, size // 26))
            place = place._replace(x=place.x + middle.x, y=place.y + middle.y)
            self._paint(name, place, cut(SHAPES[name], place), owner)
        self._labels.append(label)
        self._areas.append(int((self._owner == owner).sum()))
        self._truncated.append(False)
        self._crowds.add(owner)

    def finish(self) -> Scene:
        """Return the scene in its light, with the noise of a camera."""
        rng, size = self._rng, self._size
        slope = rng.integers(-50, 51, 2)
        ramp = np.arange(size) * 2 - size
        gain = 256 + (slope[0] * ramp[:, None] + slope[1] * ramp[None, :]) // size
        strength = int(rng.integers(1, 10))
        grain = rng.integers(-strength, strength + 1, self._image.shape, np.int16)
        image = (self._image * gain[..., None] >> 8) + grain
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        return Scene(pixels, self._objects(), self._owner == _CLUTTER)

    def _objects(self) -> tuple[SceneObject, ...]:
        masks = [self._owner == number for number in range(len(self._labels))]
        seen = [100 * int(m.sum()) // a for m, a in zip(masks, self._areas, strict=True)]
        return tuple(
            SceneObject(label, masks[k], seen[k], self._truncated[k], k in self._crowds)
            for k, label in enumerate(self._labels)
            if masks[k].any()
        )

    def _new(self, label: int, shape: Cut) -> int:
        area = int(_covered(shape, self._size)[1].sum())
        self._labels.append(label)
        self._areas.append(area)
        self._truncated.append(area < int(_is_covered(shape.cover).sum()))
        return len(self._labels) - 1

    def _paint(self, name: str, place: Place, shape: Cut, owner: int) -> None:
        paint(self._rng, self._image, name, place, shape, self._light)
        window, covered = _covered(shape, self._size)
        self._owner[window][covered] = owner

    def _fits(self, shape: Cut, in_image: int = _IN_IMAGE) -> bool:
        """Return whether enough of a shape, and of those below it, can be seen."""
        window, covered = _covered(shape, self._size)
        if covered.sum() * 100 < in_image * _is_covered(shape.cover).sum():
            return False
        seen = np.bincount(self._owner.ravel() + 2, minlength=len(self._labels) + 2)
        hidden = np.bincount(self._owner[window][covered] + 2, minlength=len(seen))
        left = (seen - hidden)[2:]
        return bool(np.all(left * 100 >= np.array(self._areas, np.int64) * _VISIBLE))


def _is_covered(cover: np.ndarray) -> np.ndarray:
    return cover >= 2  # half of a pixel


def _covered(shape: Cut, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    window, cover = shape.window(size)
    return window, _is_covered(cover)


def _moved_in(place: Place, size: int, margin: int) -> Place:
    """Return the place with its centre ``margin`` pixels away from the sides of the image."""
    low, high = margin * PIXEL, (size - margin) * PIXEL
    return place._replace(x=min(max(place.x, low), high), y=min(max(place.y, low), high))
