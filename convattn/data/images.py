"""Reading of one image as 8-bit grey or RGB, from any mode, depth and orientation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from convattn.data.depth import DeepPixels, has_more, is_deep, read_deep
from convattn.data.quiet import no_warnings
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
_ORIENTATION_TAG = 274
# For the EXIF orientations that exchange width and height: the inverse of making upright.
_UNDO = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_SAMPLE = 1024  # values of each image, from which the value range of a set is decided


class BrokenImageError(ValueError):
    """An image file cannot be read; ``path`` is the file and ``reason`` the cause."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


@dataclass(frozen=True)
class ImageInfo:
    """Properties of one image, collected to decide those of its data set.

    Args:
        size: stored width and height, before the EXIF orientation is applied.
        kind: type of the values; images of fewer bits and palettes are "8-bit" too.
        values: a sample of the values of a float or deep image, None if it was not decoded.
        extremes: the `ends` of all values.
        partly_read: whether the file has bands or pages that are not read.
    """

    size: tuple[int, int]
    kind: Literal["8-bit", "integer", "float"] = "8-bit"
    values: np.ndarray | None = None
    extremes: np.ndarray | None = None
    partly_read: bool = False


def is_image_file(path: Path) -> bool:
    """Return whether the name has an image's extension, in any case, and is not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def load_image(path: str | Path, value_range: ValueRange | None = None) -> Image.Image:
    """Return the image of a file, upright, as 8-bit grey or RGB.

    Args:
        path: the file.
        value_range: values of a float image, or of one of more than 8 bits, that become 0 and 255;
            for a trained model its ``card.value_range``. Without a range, the range of this one
            image is used, with a warning. 8-bit images do not depend on it.

    Raises:
        BrokenImageError: the file cannot be read.
    """
    try:
        with opened(path) as image:
            guessed = value_range is None and is_deep(image)
            found = to_8bit(image, value_range)
    except Exception as error:  # decoders raise many types for damaged bytes
        raise BrokenImageError(str(path), reason(path, error)) from error
    if guessed:
        warnings.warn(SCALED_BY_ITSELF, stacklevel=2)
    return found


def load_sized(
    path: str | Path, size: tuple[int, int], value_range: ValueRange | None = None
) -> Image.Image:
    """Return the image of a file, as `load_image`, in the orientation that has the given size.

    A photograph whose EXIF data turns it is usually annotated upright; where only the photograph as
    it is stored has the size, it was annotated as it is stored, and is returned so.

    Args:
        path: the file.
        size: width and height that the annotations give.
        value_range: see `load_image`.

    Raises:
        BrokenImageError: the file cannot be read, or the image has another size.
    """
    found = load_image(path, value_range)
    if found.size == size:
        return found
    undo = _UNDO.get(_orientation(path))
    if undo is None or found.size != size[::-1]:
        raise BrokenImageError(str(path), other_size(found.size, size))
    return found.transpose(undo)


def upright_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of the upright image of a file, of which the header is read.

    Raises:
        BrokenImageError: the file cannot be read.
    """
    try:
        with opened(path) as image:
            size = image.size
    except Exception as error:  # as in load_image
        raise BrokenImageError(str(path), reason(path, error)) from error
    return size[::-1] if _orientation(path) in _UNDO else size


def other_size(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Return the reason why an image does not fit its annotations."""
    return (
        f"the image has another size than its annotations say: {found[0]} x {found[1]} instead of "
        f"{expected[0]} x {expected[1]} pixels"
    )


def _orientation(path: str | Path) -> int:
    """Return the EXIF orientation of a readable image, 1 for an upright image."""
    try:
        with opened(path) as image:
            if image.format == "PNG" and "exif" not in image.info:  # else the image is decoded
                return 1
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data raise many types
        return 1


def check_image(path: str | Path, *, decode: bool = True) -> ImageInfo:
    """Return the properties of the image of a file.

    A JPEG is decoded at an eighth of its size, which reads all its bytes in less time.

    Args:
        path: the file.
        decode: whether the pixels are read, or only the header.

    Raises:
        BrokenImageError: the file cannot be read.
    """
    try:
        with opened(path) as image:
            found = image_info(image, decode=decode)
            if decode and found.kind == "8-bit":
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            return found
    except Exception as error:  # as in load_image
        raise BrokenImageError(str(path), reason(path, error)) from error


def image_info(image: Image.Image, *, decode: bool = True) -> ImageInfo:
    """Return the properties of an image that was opened and is not decoded yet."""
    more = has_more(image)
    if not is_deep(image):
        return ImageInfo(image.size, partly_read=more)
    kind: Literal["integer", "float"] = "float" if image.mode == "F" else "integer"
    if not decode:
        return ImageInfo(image.size, kind, partly_read=more)
    return deep_info(image.size, kind, read_deep(image).visible, more)


def deep_info(
    size: tuple[int, int],
    kind: Literal["integer", "float"],
    visible: np.ndarray,
    partly_read: bool = False,
) -> ImageInfo:
    """Return the properties of an image with these values."""
    values = visible
    if visible.size > _SAMPLE:  # the same random pixels every time
        values = visible[np.random.default_rng(0).integers(visible.size, size=_SAMPLE)]
    return ImageInfo(size, kind, values, ends(visible), partly_read)


def to_8bit(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Return the image, upright, in mode "L" or "RGB".

    Transparent pixels are blended with white; palettes and CMYK become RGB.

    Args:
        image: an opened image; it must not be decoded yet if its colours may have 16 bits.
        value_range: values of a float or deep image that become 0 and 255; by default the
            `decide_range` of this image.
    """
    if is_deep(image):
        return deep_to_8bit(read_deep(image), value_range)
    image = ImageOps.exif_transpose(image)  # a copy that does not need the file
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def deep_to_8bit(pixels: DeepPixels, value_range: ValueRange | None = None) -> Image.Image:
    """Return the image of these values as `to_8bit` does."""
    values, alpha = pixels
    found = Image.fromarray(to_bytes(values, value_range or decide_range(pixels.visible)))
    if alpha is None:
        return found
    found = found.convert("RGBA")
    found.putalpha(alpha)
    return _on_white(found)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return the image with 1 (grey) or 3 (RGB) channels."""
    mode = {1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, without warnings about damaged EXIF data and large images."""
    with no_warnings, Image.open(path) as image:
        yield image
