"""The value range of float and deep images: which values become black and white in a whole set.

`decide_range` decides it from the lowest and highest values of all decoded images (`ends`) and a
sample of the values:

1. NaN, infinite values and codes for missing data do not count. A value is such a code if it is a
   usual one (65535, -9999, -32768, the limits of other types, ...) and its distance from the other
   values exceeds their extent. No other value is a code, whatever its frequency: 4095 is a
   saturated pixel, and a small spot of 3500 may be the object.
2. Integers, none negative: from 0 to the largest value of 8, 10, 12, 14 or 16 bits, the fewest that
   hold the highest value. One hot pixel counts; `unused` reports a range that the others hardly
   fill.
3. Floats: 0 to 1, -1 to 1, 0 to 255 or 0 to 65535: the first that contains the values, with a
   tolerance of 5 % of its width, and whose lowest quarter contains the lowest value but not the
   highest. The outermost 1 in 10,000 values of the sample do not count, since floats often have
   outliers; if no range fits, all values count.
4. Otherwise: from the lowest to the highest value.

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
_OUTSIDE = 10_000  # at each end, 1 in so many floats does not count
_NO_DATA = (65535, 2**31 - 1, 2**32 - 1, -999, -9999, -99999, -32768, -(2**31))
_HUGE = 1e19  # larger floats are codes: 1e20, 9.97e36, -3.4e38
_NO_ENDS = np.empty(0, dtype=np.uint8)
_FEW = 16  # among fewer distinct values no value is a code
_NARROW = 1 / 12  # values that fill less of the range use at most about 20 grey levels
_CLIPPED = 0.1


def check_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """Return the range as a tuple; raise `ValueError` if it is not two increasing numbers."""
    if value_range is None:
        return None
    low, high = value_range if len(value_range) == 2 else (math.nan, math.nan)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "value_range must be two increasing numbers, the values that become black and white, "
            f"such as [0, 4095], got {list(value_range)}"
        )
    return float(low), float(high)


def decide_range(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> ValueRange:
    """Return the values that become black and white in a set of images.

    Args:
        values: all values of the images, or a sample.
        extremes: the `ends` of the images, if ``values`` is a sample.
    """
    low, high = _outermost(_measured(values, extremes))
    if np.issubdtype(values.dtype, np.integer):
        if low >= 0 and high < 2 ** _BITS[-1]:
            return 0.0, float(next(2**bits - 1 for bits in _BITS if high < 2**bits))
    else:
        for first, last in (_most(values, extremes), (low, high)):
            for usual in _FLOATS:
                if _fits(first, last, usual):
                    return usual
    return (low, high) if low < high else (low, low + 1.0)


def ends(values: np.ndarray) -> np.ndarray:
    """Return the lowest and highest finite value, with and without codes for missing data."""
    finite = values[np.isfinite(values)]
    found = _both_ends(finite)
    if _codes(found).any():
        found = np.concatenate([found, _both_ends(finite[~_codes(finite)])])
    return found


def extent(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> tuple[float, float]:
    """Return the lowest and the highest finite value."""
    return _outermost(_finite(values, extremes))


def clipped(values: np.ndarray, value_range: ValueRange, extremes: np.ndarray = _NO_ENDS) -> str:
    """Return which share of the values lies outside the range, as words, "" for none."""
    low, high = value_range
    finite, (lowest, highest) = _finite(values), extent(values, extremes)
    black = [("black", _percent(finite < low))] if lowest < low else []
    white = [("white", _percent(finite > high))] if highest > high else []
    return " and ".join(f"{share} become {color}" for color, share in [*black, *white])


def unused(values: np.ndarray, value_range: ValueRange) -> str:
    """Return a message if nearly all values fill only a small part of the range, else ""."""
    low, high = value_range
    if not _finite(values).size:
        return "they hold nothing but NaN and infinite values, which become black"
    first, last = _most(values)
    filled = (last - first) / (high - low)
    if filled >= _NARROW or first > high or last < low:
        return ""
    return f"nearly all their values, from {first:g} to {last:g}, fill only {filled:.2%} of it"


def misfit(values: np.ndarray, value_range: ValueRange, extremes: np.ndarray = _NO_ENDS) -> str:
    """Return a message if the range clips many of the values or is hardly used by them, else "".

    Args:
        values: a sample of the values of the images, of any shape.
        value_range: the values that become black and white.
        extremes: the `ends` of the images.
    """
    low, high = value_range
    margin = _TOLERANCE * (high - low)
    finite = _finite(values)
    if finite.size and np.mean((finite < low - margin) | (finite > high + margin)) > _CLIPPED:
        return clipped(values, value_range, extremes)
    return unused(values, value_range)


def to_bytes(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Return the values as uint8: the range becomes 0 to 255, NaN and infinite values become 0."""
    low, high = value_range
    finite = np.where(np.isfinite(values), values, low).astype(np.float64)
    return np.rint(np.clip((finite - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def named(value_range: ValueRange) -> str:
    """Return the range as text, such as "0 to 4095 (12 bits)"."""
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


def _both_ends(values: np.ndarray) -> np.ndarray:
    return np.array([values.min(), values.max()] if values.size else [], values.dtype)


def _percent(chosen: np.ndarray) -> str:
    share = 100 * np.mean(chosen) if chosen.size else 0.0
    return (f"{share:.3g}%" if share >= 0.01 else "less than 0.01%") + " of their values"


def _finite(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> np.ndarray:
    every = np.concatenate([part.ravel().astype(np.float64) for part in (values, extremes)])
    return every[np.isfinite(every)]


def _measured(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> np.ndarray:
    """Return the finite values without codes for missing data."""
    finite = _finite(values, extremes)
    others = np.unique(finite[~_codes(finite)])
    if others.size < _FEW:
        return finite
    width = others[-1] - others[0]
    return finite[(finite >= others[0] - width) & (finite <= others[-1] + width)]


def _codes(values: np.ndarray) -> np.ndarray:
    """Return which values are usual codes for missing data."""
    return np.isin(values, _NO_DATA) | (np.abs(values.astype(np.float64)) > _HUGE)


def _most(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> tuple[float, float]:
    """Return the lowest and highest value of the sample without its outermost values."""
    measured = _outermost(_measured(values, extremes))
    kept = _finite(values)
    kept = kept[(kept >= measured[0]) & (kept <= measured[1])]
    return _outermost(kept, kept.size // _OUTSIDE)


def _outermost(values: np.ndarray, cut: int = 0) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    ordered = np.sort(values)
    return float(ordered[cut]), float(ordered[-1 - cut])
