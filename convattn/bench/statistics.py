"""What is said of many measured times: medians with their spread, ratios round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Summary:
    """The middle of some values and how far they spread."""

    median: float
    low: float  # a quarter of the values is smaller
    high: float  # a quarter is larger
    smallest: float
    largest: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """Return it for JSON."""
        return asdict(self)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values lie below, between neighbours on a line.

    ``x[k] + f (x[k + 1] - x[k])`` of the sorted values, ``k + f = share (n - 1)``, as NumPy does.

    Raises:
        ValueError: no values, or a share outside 0 to 1.
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
    """Summarize how many times as fast the first is as the other, round by round.

    Both were measured in the same rounds, one shortly after the other: a machine that slows down
    slows both down, and their ratio stays.

    Args:
        seconds: one time per round.
        others: those of what it is compared with, of the same rounds.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    if len(seconds) != len(others):
        raise ValueError(
            f"ratios are taken round by round, got {len(seconds)} and {len(others)} rounds"
        )
    return summarize([other / own for own, other in zip(seconds, others, strict=True)])
