"""Reading one image: any mode, depth and orientation becomes 8-bit grey or RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from convattn.data.depth import has_more, is_deep, read_deep
from convattn.data.reasons import reason
from convattn.data.value_range import ValueRange, decide_range, ends, to_bytes

# fmt: off
EXTENSIONS = frozenset([
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
])
# fmt: on
SCALED_BY_ITSELF = (
    "a float image, or one of more than 8 bits, is scaled by its own values: give the value_range "
    "of the model (card.value_range) or of the data set"
)
_SAMPLE = 1024  # values of one image that tell about the values of its set


class BrokenImageError(ValueError):
    """An image that cannot be decoded; ``path`` and ``reason`` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


@dataclass(frozen=True)
class Glance:
    """What one image tells about its set.

    Args:
        size: width and height, as they are stored.
        kind: of its values: "8-bit" also where these are fewer bits, or palettes.
        values: a sample of those of a float or deep image, None where nothing was decoded.
        extremes: the `ends` of all its values.
        partly: whether the file holds more bands or pages than are used.
    """

    size: tuple[int, int]
    kind: Literal["8-bit", "integer", "float"] = "8-bit"
    values: np.ndarray | None = None
    extremes: np.ndarray | None = None
    partly: bool = False


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an image: a known ending in any case, and not a hidden file."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def load_image(path: str | Path, value_range: ValueRange | None = None) -> Image.Image:
    """Open, decode and turn upright the image at ``path``, as 8-bit grey or RGB.

    Args:
        path: the file.
        value_range: of a float image or one of more than 8 bits, the values that become 0 and 255;
            an image for a trained model needs the model's: ``card.value_range``. Without it the
            range is taken from this one image, with a warning. 8-bit images do not depend on it.

    Raises:
        BrokenImageError: the file cannot be read.
    """
    try:
        with _opened(path) as image:
            guessed = value_range is None and is_deep(image)
            found = to_8bit(image, value_range)
    except Exception as error:  # a decoder that meets damaged bytes may raise nearly anything
        raise BrokenImageError(str(path), reason(path, error)) from error
    if guessed:
        warnings.warn(SCALED_BY_ITSELF, stacklevel=2)
    return found


def check_image(path: str | Path, *, decode: bool = True) -> Glance:
    """Return what kind of image the file holds; raise `BrokenImageError` if it cannot be read.

    A JPEG is decoded at an eighth of its size: all its bytes are still read, at a fraction of the
    time.

    Args:
        path: the file.
        decode: whether to read the pixels; else only the header is read.
    """
    try:
        with _opened(path) as image:
            found = glance(image, decode=decode)
            if decode and found.kind == "8-bit":
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            return found
    except Exception as error:  # as in load_image
        raise BrokenImageError(str(path), reason(path, error)) from error


def glance(image: Image.Image, *, decode: bool = True) -> Glance:
    """Return what kind of image this is, which was opened and is not decoded yet."""
    more = has_more(image)
    if not is_deep(image):
        return Glance(image.size, partly=more)
    kind: Literal["integer", "float"] = "float" if image.mode == "F" else "integer"
    if not decode:
        return Glance(image.size, kind, partly=more)
    seen = read_deep(image).seen
    values = seen
    if seen.size > _SAMPLE:  # a fixed choice, along no row and no column
        values = seen[np.random.default_rng(0).integers(seen.size, size=_SAMPLE)]
    return Glance(image.size, kind, values, ends(seen), more)


def to_8bit(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Return the image upright, as mode "L" or "RGB".

    Transparent pixels, also those of a transparent colour, are laid on white; palettes and CMYK
    become RGB.

    Args:
        image: opened, and not decoded yet where its colours may have 16 bits.
        value_range: of float and deep images, the values that become 0 and 255; by default the
            range that `decide_range` finds for this image alone.
    """
    if is_deep(image):
        pixels = read_deep(image)
        values, alpha = pixels
        found = Image.fromarray(to_bytes(values, value_range or decide_range(pixels.seen)))
        if alpha is None:
            return found
        found = found.convert("RGBA")
        found.putalpha(alpha)
        return _on_white(found)
    image = ImageOps.exif_transpose(image)  # a copy, independent of the open file
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
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


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF blocks and huge images only warn
        with Image.open(path) as image:
            yield image
