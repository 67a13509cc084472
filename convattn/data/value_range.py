"""Which values of float and deep images stand for black and white: one range for a whole set.

The rule of `decide_range`, on a sample of all values of the set:

1. Left out are NaN and infinite values; a lowest or highest value that lies ten times as far from
   the others as these lie apart, which marks pixels without data; and 1 in 10,000 of the rest at
   either end.
2. Integers that are not negative: 0 to the largest value of 8, 10, 12, 14 or 16 bits, the smallest
   that holds them.
3. Floats: 0 to 1, -1 to 1, 0 to 255 or 0 to 65535, the first that holds them, give or take 5 % of
   its width, and of whose lowest quarter they reach both sides.
4. All others: the lowest and the highest value themselves.

Values outside the range become black or white; NaN and infinite values become black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ValueRange = tuple[float, float]

_BITS = (8, 10, 12, 14, 16)
_FLOATS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
_TOLERANCE = 0.05
_OUTSIDE = 10_000  # one value of so many may lie outside, at either end
_MARKER = 10  # times as far away as all others lie apart
_FEW = 16  # with fewer distinct values nothing is taken for a marker
_NARROW = 1 / 12  # values that cover less of the range leave about 20 of 256 grey levels
_CLIPPED = 0.1


def check_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """Return the range as a tuple; raise `ValueError` unless it is two finite numbers in order."""
    if value_range is None:
        return None
    low, high = value_range if len(value_range) == 2 else (math.nan, math.nan)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"value_range is the value of black and that of white, such as [0, 4095], got "
            f"{list(value_range)}"
        )
    return float(low), float(high)


def decide_range(values: np.ndarray) -> ValueRange:
    """Return the values that stand for black and white in a set with these ``values``."""
    low, high = extent(values)
    if np.issubdtype(values.dtype, np.integer):
        if low >= 0 and high < 2 ** _BITS[-1]:
            return 0.0, float(next(2**bits - 1 for bits in _BITS if high < 2**bits))
    else:
        for usual in _FLOATS:
            if _fits(low, high, usual):
                return usual
    return (low, high) if low < high else (low, low + 1.0)


def extent(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and highest value of those that the rule takes into account."""
    kept = _measured(values)
    if not kept.size:
        return 0.0, 0.0
    cut = kept.size // _OUTSIDE
    return float(kept[cut]), float(kept[-1 - cut])


def misfit(values: np.ndarray, value_range: ValueRange) -> str:
    """Return what is lost where images with these ``values`` are read by the range, "" if little.

    Args:
        values: a sample, of any shape.
        value_range: the values of black and white.
    """
    low, high = value_range
    kept = _measured(values)
    if not kept.size:
        return "they hold nothing but NaN and infinite values, which become black"
    margin = _TOLERANCE * (high - low)
    clipped = np.mean((kept < low - margin) | (kept > high + margin))
    if clipped > _CLIPPED:
        return f"{clipped:.0%} of their values lie outside and are clipped"
    first, last = extent(values)
    filled = (last - first) / (high - low)
    if filled < _NARROW:
        return f"their values {first:g} to {last:g} fill only {filled:.2%} of it"
    return ""


def to_bytes(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Return the values as uint8: the range becomes 0 to 255, NaN and infinite values become 0."""
    low, high = value_range
    finite = np.where(np.isfinite(values), values, low).astype(np.float64)
    return np.rint(np.clip((finite - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def named(value_range: ValueRange) -> str:
    """Return the range in words, such as "0 to 4095 (12 bits)"."""
    low, high = value_range
    bits = [f" ({bits} bits)" for bits in _BITS if (low, high) == (0, 2**bits - 1)]
    return f"{low:g} to {high:g}" + "".join(bits)


def _fits(low: float, high: float, usual: ValueRange) -> bool:
    first, last = usual
    margin, quarter = _TOLERANCE * (last - first), (last - first) / 4
    if low == high:  # one value alone
        return first <= low <= last
    inside = first - margin <= low and high <= last + margin
    return inside and low <= first + quarter <= high


def _measured(values: np.ndarray) -> np.ndarray:
    """The finite values, sorted, without a marker of pixels that hold no data."""
    kept = np.sort(values[np.isfinite(values)]).astype(np.float64)
    distinct = np.unique(kept)
    if distinct.size <= _FEW:
        return kept
    if distinct[1] - distinct[0] > _MARKER * (distinct[-1] - distinct[1]):
        kept = kept[kept > distinct[0]]
    elif distinct[-1] - distinct[-2] > _MARKER * (distinct[-2] - distinct[0]):
        kept = kept[kept < distinct[-1]]
    return kept
