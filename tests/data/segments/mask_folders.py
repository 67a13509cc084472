"""Folders of images with masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (12, 8)  # width and height


def write_pair(
    root: Path,
    image: str,
    mask: str = "",
    values: Sequence[int] = (0, 1, 2),
    *,
    size: tuple[int, int] = SIZE,
    palette: bool = False,
) -> None:
    """Write an image and a mask that holds the values in its first row.

    Args:
        root: the folder.
        image: relative name of the image.
        mask: relative name of the mask, "" for no mask.
        values: of the first row from the left; all other pixels have the first value.
        size: width and height of both.
        palette: whether the mask is a palette image.
    """
    write_image(root / image, Image.new("RGB", size, (10 * len(values), 100, 50)))
    if mask:
        pixels = np.full(size[::-1], values[0], np.uint8)
        pixels[0, : len(values)] = values
        found = Image.fromarray(pixels)
        if palette:
            found.putpalette([value * 7 % 256 for value in range(768)])
        write_image(root / mask, found)


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image, and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_parts(root: Path, layout: str, parts: Sequence[str], count: int = 3) -> None:
    """Write ``count`` images with masks for each part, and ``classes.txt`` with three classes.

    Args:
        root: the folder.
        layout: the folders of images and masks, such as "images/{} masks/{}".
        parts: names of the parts.
        count: images in each part.
    """
    images, masks = layout.split()
    for part in parts:
        for number in range(count):
            name = f"{part}{number}"
            write_pair(
                root, f"{images.format(part)}/{name}.jpg", f"{masks.format(part)}/{name}.png"
            )
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
