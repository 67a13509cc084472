"""Tables of results, as lines of text."""

from __future__ import annotations

from typing import Any

from convattn.bench.statistics import speed_ratio

_HEAD = ("", "images/s", "quartiles", "ms/batch", "mult-adds", "of peak", "peak memory")


def comparison_table(group: dict[str, Any]) -> list[str]:
    """Return the table of a group of models, with the ratio of the first model to each other one.

    Args:
        group: the result of `run_group`.
    """
    runs = group["runs"]
    first = next(iter(runs), "")
    compared = len(runs) > 1
    rows = [[*_HEAD, *([f"{first} against it"] if compared else [])]]
    for name, run in runs.items():
        row = [name, *_cells(run)]
        if compared:
            row.append("" if name == first else ratio_text(runs[first], run))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines + [f"{name}: {error}" for name, error in group["errors"].items()]


def ratio_text(run: dict[str, Any], other: dict[str, Any]) -> str:
    """Return how many times as fast a run is as another: ``1.05x (1.03 - 1.08)``."""
    ratio = speed_ratio(run["seconds"], other["seconds"])
    digits = 1 if ratio.median >= 10 else 2
    low, middle, high = (f"{x:.{digits}f}" for x in (ratio.low, ratio.median, ratio.high))
    return f"{middle}x ({low} - {high})"


def size_text(count: float | None) -> str:
    """Return a number of bytes in GiB, MiB or KiB."""
    if count is None:
        return "-"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def macs_text(macs: float | None) -> str:
    """Return a number of multiply-adds in billions (G) or millions (M)."""
    if macs is None:
        return "-"
    return f"{macs / 1e9:.2f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"


def _cells(run: dict[str, Any]) -> list[str]:
    summary, images, floor = run["summary"], run["images"], run["floor"]
    slow, fast = images / summary["high"], images / summary["low"]
    return [
        _number(images / summary["median"]),
        f"{_number(slow)} - {_number(fast)}",
        _number(summary["median"] * 1e3),
        macs_text(run["macs"] and run["macs"] / images),
        f"{floor['share_reached']:.0%}" if floor else "-",
        size_text(run["memory_bytes"]),
    ]


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
