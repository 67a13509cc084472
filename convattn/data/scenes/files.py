"""Files that several formats have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from convattn.data.scenes.scene import Scene


def save_image(scene: Scene, path: Path) -> None:
    """Write the picture of a scene as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(path, quality=92)


def save_map(values: np.ndarray, path: Path, palette: bytes | None = None) -> None:
    """Write a map, uint8 (H, W), as PNG: grey levels, or numbers of the colours of a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def save_lines(lines: list[str], path: Path) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
