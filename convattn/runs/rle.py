"""Masks as COCO's run-length encoding with text counts, which JSON can represent."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np


class Rle(TypedDict):
    """A mask of one object.

    Args:
        size: height and width.
        counts: the compressed run lengths in column order.
    """

    size: list[int]
    counts: str


def encode_mask(mask: Any) -> Rle:
    """Return the run-length encoding of a mask (H, W), whose pixels above zero are the object."""
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(np.asarray(mask) > 0, np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def decode_mask(rle: Rle) -> np.ndarray:
    """Return the Boolean mask (H, W) of a run-length encoding."""
    from pycocotools import mask as coco

    found: np.ndarray = coco.decode({"size": rle["size"], "counts": rle["counts"].encode()})
    return found.astype(bool)
