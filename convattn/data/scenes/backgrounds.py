"""Backgrounds of scenes: noise, and parts of the photographs in scikit-learn and scikit-image."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from convattn.data.scenes.canvas import sum_of_four

# Files in the wheels. No photograph of a training scene is that of a scene held out.
TRAINING = (
    "sklearn/datasets/images/china.jpg",
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/coffee.png",
    "skimage/data/grass.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
)
HELD_OUT = (
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/chelsea.png",
    "skimage/data/gravel.png",
    "skimage/data/ihc.png",
)


def background(rng: np.random.Generator, size: int, *, held_out: bool) -> np.ndarray:
    """Return a background of ``size`` x ``size`` pixels, (H, W, 3), values 0 to 255 in int32."""
    if not rng.integers(3):
        return noise(rng, size)
    names = HELD_OUT if held_out else TRAINING
    return _part(rng, photograph(names[rng.integers(len(names))]), size)


def noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return smooth noise in a random colour, a sum of three octaves."""
    found = np.empty((size, size, 3), np.int32)
    found[:] = rng.integers(50, 170) + rng.integers(-25, 26, 3)
    for cells, height in ((2, 60), (6, 50), (size // 8, 40)):
        grid = rng.integers(-height // 3, height // 3 + 1, (cells + 1, cells + 1, 3))
        grid += rng.integers(-height, height + 1, (cells + 1, cells + 1, 1))
        found += _enlarge(grid, size) // 2
    return np.clip(found, 0, 255, out=found)


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Interpolate a grid (N, N, 3) linearly to ``size`` x ``size`` points."""
    for _ in range(2):  # rows, then columns
        place = np.arange(size) * ((len(grid) - 1) * 256) // size
        index, share = place >> 8, (place & 255)[:, None, None]
        grid = (grid[index] * (256 - share) + grid[index + 1] * share) >> 8
        grid = grid.swapaxes(0, 1)
    return grid


def _part(rng: np.random.Generator, photograph: np.ndarray, size: int) -> np.ndarray:
    """Return a part of a photograph, at its own or half its size, in other light."""
    step = 2 if min(photograph.shape[:2]) >= 2 * size and rng.integers(2) else 1
    missing = [max(0, size - length) for length in photograph.shape[:2]]
    if any(missing):
        photograph = np.pad(photograph, (*((0, m) for m in missing), (0, 0)), "symmetric")
    top, left = (int(rng.integers(n - step * size + 1)) for n in photograph.shape[:2])
    part = photograph[top : top + step * size, left : left + step * size].astype(np.int32)
    part = part if step == 1 else sum_of_four(part) // 4
    part = part[:, ::-1] if rng.integers(2) else part
    gain = rng.integers(170, 281) + rng.integers(-20, 21, 3)
    return np.minimum(part * gain >> 8, 255)


@functools.cache
def photograph(name: str) -> np.ndarray:
    """Return a photograph of `TRAINING` or `HELD_OUT`, RGB, uint8 (H, W, 3).

    Raises:
        ModuleNotFoundError: its package is not installed.
        FileNotFoundError: the package was installed without its photographs.
    """
    package, _, file = name.partition("/")
    spec = find_spec(package)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "scenes need the photographs of scikit-learn and scikit-image: "
            "pip install 'convattn[train]'",
            name=package,
        )
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: install {package} with pip, which has it")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
