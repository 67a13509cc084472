"""Files of masks: 8-bit grey and palette images whose values are class numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convattn.data.images import BrokenImageError, opened
from convattn.data.reasons import reason

_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_SPREAD = {"L;2": 85, "L;4": 17}  # Pillow multiplies grey values of 2 and 4 bits
_SAVE = "save class numbers as an 8-bit grey or palette PNG"


@dataclass(frozen=True)
class MaskInfo:
    """Properties of one mask.

    Args:
        size: width and height.
        values: whether each of the 256 values occurs; None if the mask was not decoded.
    """

    size: tuple[int, int]
    values: np.ndarray | None = None


def check_mask(path: str | Path, *, decode: bool = True) -> MaskInfo:
    """Return the properties of a mask.

    Raises:
        BrokenImageError: the file cannot be read, or it is no mask of class numbers.
    """
    if not decode:
        return MaskInfo(mask_size(path))
    values = load_mask(path)
    height, width = values.shape
    return MaskInfo((width, height), values_in(values))


def mask_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of a mask, of which the header is read; errors as `load_mask`."""
    try:
        with opened(path) as image:
            why, size = _unusable(image), image.size
    except Exception as error:  # decoders raise many types for damaged bytes
        raise BrokenImageError(str(path), _unreadable(path, error)) from error
    if why:
        raise BrokenImageError(str(path), why)
    return size


def load_mask(path: str | Path) -> np.ndarray:
    """Return the values of a mask, uint8 (H, W); of a palette image they are the indices.

    Raises:
        BrokenImageError: the file cannot be read, or it is no mask of class numbers.
    """
    try:
        with opened(path) as image:
            why, factor = _unusable(image), _factor(image)
            values = np.empty(0) if why else np.array(image)
    except Exception as error:  # as in mask_size
        raise BrokenImageError(str(path), _unreadable(path, error)) from error
    if why:
        raise BrokenImageError(str(path), why)
    values = values.astype(np.uint8, copy=False)
    return values // np.uint8(factor) if factor > 1 else values


def values_in(values: np.ndarray) -> np.ndarray:
    """Return whether each of the 256 values occurs."""
    return np.bincount(values.ravel(), minlength=256) > 0


def _factor(image: Image.Image) -> int:
    tiles = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else ""
    return _SPREAD.get(raw if isinstance(raw, str) else str(raw[0]), 1)


def _unreadable(path: str | Path, error: Exception) -> str:
    return f"the mask cannot be read: {reason(path, error)}"


def _unusable(image: Image.Image) -> str:
    """Return why an image is no mask of class numbers, "" if it is one."""
    if image.format in _LOSSY:
        return f"the mask is lossy: a {image.format} file changes class numbers; {_SAVE}"
    if image.mode in ("L", "P", "1"):
        return ""
    if image.mode[0] in "IF":
        return f"the mask has more than 8 bits: mode {image.mode}; {_SAVE}"
    return f"the mask is in colours: mode {image.mode}; {_SAVE}"
