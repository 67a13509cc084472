"""Pixel values of float images, and of integer images of more than 8 bits.

Pillow keeps the values of deep grey images (modes "I;16", "I" and "F"), but reduces deep colour
images to 8 bits. Here 16-bit colours are decoded twice, to the upper and to the lower bytes, and
the two are joined. Of a compressed TIFF with a plane per colour, Pillow decodes the upper bytes
both times.
"""

from __future__ import annotations

import io
import sys
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, SAMPLESPERPIXEL

_UNSIGNED, _SIGNED = 1, 2
_ORDERS = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_COLORS = ("RGB;16", "RGBA;16", "RGBX;16", "R;16", "G;16", "B;16", "A;16")


class DeepPixels(NamedTuple):
    """Values (H, W) or (H, W, 3) of an upright image, and its alpha channel if it has one."""

    values: np.ndarray
    alpha: Image.Image | None = None

    @property
    def visible(self) -> np.ndarray:
        """The values of the pixels that are not fully transparent."""
        chosen = () if self.alpha is None else np.asarray(self.alpha) > 0
        return self.values[chosen].ravel()


def is_deep(image: Image.Image) -> bool:
    """Whether an opened, not yet decoded image has more than 8 bits per value."""
    if image.mode.startswith(("I", "F")):
        return True
    signed = image.mode == "L" and _tiff(image, SAMPLEFORMAT) == _SIGNED
    return signed or _color_layout(image) != ""


def has_more(image: Image.Image) -> bool:
    """Whether a TIFF has bands that Pillow does not return, or more than one page."""
    tags = _tags(image)
    if tags is None:
        return False
    return _tiff(image, SAMPLESPERPIXEL, 1) > len(image.getbands()) or tags.next != 0


def read_deep(image: Image.Image) -> DeepPixels:
    """Decode an image for which `is_deep` is true."""
    layout = _color_layout(image)
    if layout == "LA;16B":  # as if it were four bands of 8 bits: two of grey, two of alpha
        again = Image.open(io.BytesIO(_content(image)))  # leaves the given one undecoded
        upper, lower, alpha, _ = _decode(again, {"LA;16B": "RGBA"}).split()
        return DeepPixels(_joined(upper, lower), alpha)
    if layout:
        return _read_color(image)
    values = np.asarray(ImageOps.exif_transpose(image))
    unsigned = _tiff(image, SAMPLEFORMAT, _UNSIGNED) == _UNSIGNED
    if image.mode == "L":  # Pillow returns signed bytes as unsigned ones
        values = values.view(np.int8)
    elif image.mode == "I" and unsigned and _tiff(image, BITSPERSAMPLE) == 32:
        values = values.view(np.uint32)  # Pillow returns them as signed ones
    return DeepPixels(values, _alpha_of_color(image, values))


def _read_color(opened: Any) -> DeepPixels:
    content = _content(opened)
    layouts = {tile: _deep_layout(opened, tile) for tile in _layouts(opened)}
    swapped = {tile: name[:-1] + _ORDERS[name[-1]] for tile, name in layouts.items()}
    upper, lower = (_decode(Image.open(io.BytesIO(content)), way) for way in (layouts, swapped))
    values = _joined(upper, lower)[..., :3]
    if upper.mode == "RGBA":
        return DeepPixels(values, upper.getchannel("A"))
    return DeepPixels(values, _alpha_of_color(opened, values))


def _content(opened: Any) -> bytes:
    opened.fp.seek(0)
    content: bytes = opened.fp.read()
    return content


def _alpha_of_color(image: Image.Image, values: np.ndarray) -> Image.Image | None:
    """Return the alpha channel of a PNG that declares one colour as transparent."""
    color = image.info.get("transparency")
    if color is None:
        return None
    other = values != np.asarray(color)
    return Image.fromarray((other.any(-1) if other.ndim == 3 else other).astype(np.uint8) * 255)


def _joined(upper: Image.Image, lower: Image.Image) -> np.ndarray:
    return np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)


def _decode(image: Image.Image, layouts: dict[str, str]) -> Image.Image:
    """Decode the image, upright, with other byte layouts."""
    opened: Any = image
    opened.tile = [tile._replace(args=_renamed(tile.args, layouts)) for tile in opened.tile]
    return ImageOps.exif_transpose(image)


def _renamed(args: Any, layouts: dict[str, str]) -> Any:
    return layouts[args] if isinstance(args, str) else (layouts[args[0]], *args[1:])


def _color_layout(image: Image.Image) -> str:
    """Return Pillow's name of the byte layout of 16-bit colours, "" for any other image."""
    for tile in _layouts(image):
        name = _deep_layout(image, tile)
        if name.startswith(_COLORS) or name == "LA;16B":
            return name
    return ""


def _layouts(image: Image.Image) -> list[str]:
    found = (getattr(tile, "args", None) for tile in getattr(image, "tile", ()))
    return [str(args if isinstance(args, str) else args[0]) for args in found if args]


def _deep_layout(image: Image.Image, name: str) -> str:
    """Correct the layout of a 16-bit TIFF with a plane per colour, which Pillow reads as 8 bits."""
    if name in ("R", "G", "B", "A") and _tiff(image, BITSPERSAMPLE) == 16:
        return f"{name};16{'L' if _tags(image).prefix == b'II' else 'B'}"
    return name


def _tiff(image: Image.Image, tag: int, default: int = 0) -> int:
    """Return the first value of a TIFF tag, ``default`` if it is missing, 0 for other formats."""
    tags = _tags(image)
    if tags is None:
        return 0
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", None)
