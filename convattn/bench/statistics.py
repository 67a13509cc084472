"""Statistics of measured times: medians, quartiles, and ratios round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Summary:
    """Median, quartiles and extremes of some values."""

    median: float
    low: float  # the lower quartile
    high: float  # the upper quartile
    smallest: float
    largest: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """Return the fields, for JSON."""
        return asdict(self)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile at ``share``, with linear interpolation between neighbours.

    ``x[k] + f (x[k + 1] - x[k])`` of the sorted values, ``k + f = share (n - 1)``, as in NumPy.

    Raises:
        ValueError: there are no values, or ``share`` is not between 0 and 1.
    """
    if not values:
        raise ValueError("no values were measured")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarize(values: Sequence[float]) -> Summary:
    """Return median, quartiles and extremes."""
    return Summary(
        median=quantile(values, 0.5),
        low=quantile(values, 0.25),
        high=quantile(values, 0.75),
        smallest=min(values),
        largest=max(values),
        count=len(values),
    )


def speed_ratio(seconds: Sequence[float], others: Sequence[float]) -> Summary:
    """Summarize how many times as fast the first computation is as the second, round by round.

    Both were measured in the same rounds. If the machine becomes slower, both become slower, and
    their ratio stays the same.

    Args:
        seconds: the first computation's time in each round.
        others: the second computation's times in the same rounds.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    if len(seconds) != len(others):
        raise ValueError(
            f"ratios are taken round by round, got {len(seconds)} and {len(others)} rounds"
        )
    return summarize([other / own for own, other in zip(seconds, others, strict=True)])
