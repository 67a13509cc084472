"""Images with a mask of class numbers each."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from convattn.data.images import BrokenImageError, load_sized
from convattn.data.segments.class_values import ranges
from convattn.data.segments.mask_files import load_mask, mask_size, values_in
from convattn.data.source import ImageSet
from convattn.data.value_range import ValueRange


class SegmentImages(ImageSet):
    """Image files with a mask of class numbers each.

    Args:
        images: the image files.
        masks: the mask of each image.
        table: the class number of each of the 256 values of a mask, or `IGNORED`.
        known: whether each of the 256 values is a class or ignored.
        text: the known values, for messages.
        value_range: see `load_image`.
    """

    def __init__(
        self,
        images: Sequence[str] | np.ndarray,
        masks: Sequence[str] | np.ndarray,
        table: np.ndarray,
        known: np.ndarray,
        text: str = "",
        value_range: ValueRange | None = None,
    ) -> None:
        self._images = _encoded(images)
        self._masks = _encoded(masks)
        self._table = table
        self._known = known
        self._text = text
        self._value_range = value_range
        self._is_plain = bool((table == np.arange(256))[known].all())

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """Read the file: upright, or as it is stored if only that has the size of the mask."""
        size = mask_size(self.mask_path(index))
        return load_sized(self.path(index), size, self._value_range)

    def target(self, index: int) -> tv_tensors.Mask:
        """Return the class numbers, `Mask` uint8 (H, W); pixels without a class are `IGNORED`."""
        path = self.mask_path(index)
        values = load_mask(path)
        if not self._known.take(values).all():
            unknown = np.flatnonzero(values_in(values) & ~self._known).tolist()
            raise BrokenImageError(path, unknown_values(unknown, self._text))
        if not self._is_plain:
            values = self._table.take(values)
        return tv_tensors.Mask(torch.from_numpy(values))

    def path(self, index: int) -> str:
        """Return the path of the image."""
        return os.fsdecode(self._images[index])

    def mask_path(self, index: int) -> str:
        """Return the path of the mask."""
        return os.fsdecode(self._masks[index])

    def scaled(self, value_range: ValueRange | None) -> SegmentImages:
        """Return the same images with another ``value_range``."""
        return SegmentImages(
            self._images, self._masks, self._table, self._known, self._text, value_range
        )


def unknown_values(values: Sequence[int], text: str) -> str:
    """Return the reason for a mask with values that are no class; ``text`` names the classes."""
    return f"the mask holds values that are no class: {ranges(values)}; {text}"


def _encoded(paths: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return paths as an array, which forked processes share and which has no Python objects."""
    if isinstance(paths, np.ndarray):
        return paths
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
