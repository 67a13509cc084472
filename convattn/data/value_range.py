"""Which values of float and deep images stand for black and white: one range for a whole set.

The rule of `decide_range`, on the lowest and highest values of all images that are decoded (`ends`)
and on a sample of the values between:

1. Left out are NaN and infinite values, and pixels without data: a value that is a usual code for
   these (65535, -9999, -32768, the limits of other types, ...) and lies further from the others
   than these lie apart. No other value is taken for such a code, however few or many pixels have
   it: 4095 is a saturated pixel, and a small spot of 3500 may be the object.
2. Integers that are not negative: 0 to the largest value of 8, 10, 12, 14 or 16 bits, the smallest
   that holds the highest value of all. One hot pixel counts; where the others fill little of the
   range, `unused` says so.
3. Floats: 0 to 1, -1 to 1, 0 to 255 or 0 to 65535, the first that holds them, give or take 5 % of
   its width, and of whose lowest quarter they reach both sides. First 1 in 10,000 of the sample at
   either end is left out, as floats often have a few wild values; where no range fits, all count.
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
_OUTSIDE = 10_000  # one float of so many may lie outside, at either end
_NO_DATA = (65535, 2**31 - 1, 2**32 - 1, -999, -9999, -99999, -32768, -(2**31))
_HUGE = 1e19  # floats beyond it are codes too: 1e20, 9.97e36, -3.4e38
_NO_ENDS = np.empty(0, dtype=np.uint8)
_FEW = 16  # with fewer distinct values nothing is taken for a code
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


def decide_range(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> ValueRange:
    """Return the values that stand for black and white in a set of images.

    Args:
        values: all values, or a sample of them.
        extremes: of a sample, the `ends` of the images it was taken from.
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
    """Return the lowest and highest finite value, and those of the values that are no codes."""
    finite = values[np.isfinite(values)]
    found = _both_ends(finite)
    if _codes(found).any():
        found = np.concatenate([found, _both_ends(finite[~_codes(finite)])])
    return found


def extent(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> tuple[float, float]:
    """Return the lowest and the highest finite value."""
    return _outermost(_finite(values, extremes))


def clipped(values: np.ndarray, value_range: ValueRange, extremes: np.ndarray = _NO_ENDS) -> str:
    """Return which share of the values the range turns into black and white, "" for none."""
    low, high = value_range
    finite, (lowest, highest) = _finite(values), extent(values, extremes)
    black = [("black", _percent(finite < low))] if lowest < low else []
    white = [("white", _percent(finite > high))] if highest > high else []
    return " and ".join(f"{share} become {color}" for color, share in [*black, *white])


def unused(values: np.ndarray, value_range: ValueRange) -> str:
    """Return how little of the range nearly all values fill, "" if they fill enough of it."""
    low, high = value_range
    if not _finite(values).size:
        return "they hold nothing but NaN and infinite values, which become black"
    first, last = _most(values)
    filled = (last - first) / (high - low)
    if filled >= _NARROW or first > high or last < low:
        return ""
    return f"nearly all their values, from {first:g} to {last:g}, fill only {filled:.2%} of it"


def misfit(values: np.ndarray, value_range: ValueRange, extremes: np.ndarray = _NO_ENDS) -> str:
    """Return what is lost where images with these ``values`` are read by the range, "" if little.

    Args:
        values: a sample, of any shape.
        value_range: the values of black and white.
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


def _both_ends(values: np.ndarray) -> np.ndarray:
    return np.array([values.min(), values.max()] if values.size else [], values.dtype)


def _percent(chosen: np.ndarray) -> str:
    share = 100 * np.mean(chosen) if chosen.size else 0.0
    return (f"{share:.3g}%" if share >= 0.01 else "less than 0.01%") + " of their values"


def _finite(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> np.ndarray:
    every = np.concatenate([part.ravel().astype(np.float64) for part in (values, extremes)])
    return every[np.isfinite(every)]


def _measured(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> np.ndarray:
    """The finite values without codes for pixels that hold no data."""
    finite = _finite(values, extremes)
    others = np.unique(finite[~_codes(finite)])
    if others.size < _FEW:
        return finite
    width = others[-1] - others[0]
    return finite[(finite >= others[0] - width) & (finite <= others[-1] + width)]


def _codes(values: np.ndarray) -> np.ndarray:
    """Where the values are such as stand for missing data."""
    return np.isin(values, _NO_DATA) | (np.abs(values.astype(np.float64)) > _HUGE)


def _most(values: np.ndarray, extremes: np.ndarray = _NO_ENDS) -> tuple[float, float]:
    """The lowest and highest value of the sample but for 1 in 10,000 at either end."""
    measured = _outermost(_measured(values, extremes))
    kept = _finite(values)
    kept = kept[(kept >= measured[0]) & (kept <= measured[1])]
    return _outermost(kept, kept.size // _OUTSIDE)


def _outermost(values: np.ndarray, cut: int = 0) -> tuple[float, float]:
    if not values.size:
        return 0.0, 0.0
    ordered = np.sort(values)
    return float(ordered[cut]), float(ordered[-1 - cut])
