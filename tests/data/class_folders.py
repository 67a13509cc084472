"""Folders of small images for tests; each class has its own colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 60, 200), "green": (40, 180, 60), "red": (210, 50, 40)}


def write_image(path: Path, color: tuple[int, int, int] = (90, 90, 90), seed: int = 0) -> Path:
    """Write a noisy image of one colour, 12x10 pixels."""
    noise = np.random.default_rng(seed).integers(-25, 25, (10, 12, 3))
    pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(root: Path, counts: Mapping[str, int], *, first: int = 0) -> Path:
    """Write ``counts[name]`` images into ``root/name`` for every class."""
    for name, count in counts.items():
        for number in range(first, first + count):
            color = COLORS.get(name, (90, 90, 90))
            write_image(root / name / f"{number}.png", color, seed=number)
    return root


def write_broken(path: Path) -> Path:
    """Write a text file with the name of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is not an image")
    return path
