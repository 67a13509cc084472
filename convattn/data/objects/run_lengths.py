"""Masks as COCO's run lengths: their check, and their compressed form."""

from __future__ import annotations

from typing import Any

import numpy as np

_OTHER_SIZE = "the mask has another size than the image"
_NO_RUNS = "the run lengths of the mask are damaged"


def run_lengths_problem(found: Any, size: tuple[int, int]) -> str:
    """Return why a value is not the run lengths of a mask, "" if it is.

    Args:
        found: a mapping with the size (height, width) and the counts.
        size: width and height of the image.
    """
    if not isinstance(found, dict) or not {"size", "counts"} <= found.keys():
        return "the mask is neither a list of polygons nor run lengths with size and counts"
    if found["size"] != [size[1], size[0]]:
        return f"{_OTHER_SIZE}: size {found['size']} instead of {[size[1], size[0]]}"
    runs = _runs(found["counts"])
    if runs is None or (runs < 0).any():
        return f"{_NO_RUNS}: they cannot be read"
    if runs.sum() != size[0] * size[1]:
        return f"{_NO_RUNS}: they are of {runs.sum():,} pixels instead of {size[0] * size[1]:,}"
    return ""


def compressed(found: dict[str, Any], size: tuple[int, int]) -> bytes:
    """Return the counts of a mask in the compressed form."""
    from pycocotools import mask

    counts = found["counts"]
    if isinstance(counts, str):
        return counts.encode()
    runs = {"size": [size[1], size[0]], "counts": counts}
    data: bytes = mask.frPyObjects(runs, size[1], size[0])["counts"]
    return data


def _runs(counts: Any) -> np.ndarray | None:
    """Return the lengths of the runs, None if they cannot be read."""
    if isinstance(counts, list):
        if not all(type(count) is int and abs(count) < 2**40 for count in counts):
            return None
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str) or not counts.isascii():
        return None
    return _decompressed(np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48)


def _decompressed(units: np.ndarray) -> np.ndarray | None:
    """Return the lengths; None if they are damaged.

    Each character has five bits of a number; its sixth bit is set if more characters follow. In the
    last character of a number, the highest of the five bits is the sign. From the fourth number on,
    a number is the difference from the number two places before.
    """
    if not len(units) or units.min() < 0 or units.max() > 63 or units[-1] & 32:
        return None
    ends = np.flatnonzero(units & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # more than 35 bits
        return None
    place = np.arange(len(units)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((units & 31) << (5 * place), starts)
    numbers -= np.where(units[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    for first in (1, 2):  # the first number is not the base of a difference
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
