"""Reading one image: any mode, depth and orientation becomes 8-bit grey or RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# fmt: off
EXTENSIONS = frozenset([
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
])
# fmt: on


class BrokenImageError(ValueError):
    """An image that cannot be decoded; ``path`` and ``reason`` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an image: a known ending in any case, and not a hidden file."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def load_image(path: str | Path) -> Image.Image:
    """Open, decode and turn upright the image at ``path``; raise `BrokenImageError` if broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF blocks and huge images only warn
            with Image.open(path) as image:
                return to_8bit(ImageOps.exif_transpose(image))
    except Exception as error:  # a decoder that meets damaged bytes may raise nearly anything
        raise BrokenImageError(str(path), _reason(error)) from error


def check_image(path: str | Path, *, decode: bool = True) -> None:
    """Raise `BrokenImageError` unless the image opens and, if ``decode``, its pixels can be read.

    A JPEG is decoded at an eighth of its size: all its bytes are still read, at a fraction of the
    time.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if decode:
                    image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                    image.load()
    except Exception as error:  # as in load_image
        raise BrokenImageError(str(path), _reason(error)) from error


def to_8bit(image: Image.Image) -> Image.Image:
    """Return the image as mode "L" or "RGB".

    16-bit grey is scaled down (not clipped), transparent pixels are laid on white, palettes and
    CMYK become RGB.
    """
    if image.mode in ("L", "RGB"):
        return image.copy()  # decoded and independent of the open file
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        return _from_array(np.asarray(image, dtype=np.float64) / 257.0)
    if image.mode == "F":
        values = np.asarray(image)
        return _from_array(values * 255.0 if values.size and values.max() <= 1.0 else values)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return the image with 1 (grey) or 3 (RGB) channels."""
    mode = {1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_array(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportError) and error.__context__ is not None:
        # Ultralytics, where it is imported, makes PIL look for one more decoder.
        return _reason(error.__context__)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = str(error).split(" <")[0].splitlines() or [""]
    if "cannot identify" in text[0]:
        return "not an image, or damaged from the first bytes on"
    return text[0] or type(error).__name__
