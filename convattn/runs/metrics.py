"""The metrics of an epoch, and the rule for the best epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

Row = TypeVar("Row", bound=Mapping[str, float])


@dataclass(frozen=True)
class Column:
    """A number of every epoch.

    Args:
        name: the name in ``metrics.csv`` and TensorBoard, such as "val_top1".
        title: the heading on the console, such as "top-1".
        kind: "loss", "share" (from 0 to 1, shown in per cent), "number" or "rate" (per second).
        width: of the column on the console, in characters.
    """

    name: str
    title: str
    kind: Literal["loss", "share", "number", "rate"]
    width: int = 8


BASE_COLUMNS = (
    Column("epoch", "epoch", "number", 7),
    Column("step", "step", "number"),
    Column("lr", "lr", "number"),
    Column("images_per_second", "images/s", "rate", 9),
)


def score(metrics: Mapping[str, float], rule: tuple[str, ...]) -> tuple[float, ...]:
    """Return the score of an epoch; the epoch with the greatest score is the best.

    Args:
        metrics: the numbers of an epoch.
        rule: names of metrics, the most important one first, such as ("val_top1", "-val_loss");
            "-" before a name means that a smaller value is better.

    Returns:
        A number per name; minus infinity, the worst, where the metric is missing or NaN.
    """
    numbers = []
    for name in rule:
        value = metrics.get(name.removeprefix("-"), math.nan)
        value = -value if name.startswith("-") else value
        numbers.append(-math.inf if math.isnan(value) else value)
    return tuple(numbers)


def best_epoch(rows: Iterable[Row], rule: tuple[str, ...]) -> Row | None:
    """Return the row of the best epoch, the earliest among equal scores.

    Args:
        rows: the numbers of the epochs.
        rule: as for `score`.

    Returns:
        The row; None where no row has a finite value of the first metric.
    """
    candidates = [row for row in rows if math.isfinite(score(row, rule)[0])]
    return max(candidates, key=lambda row: score(row, rule), default=None)
