"""Figures of results. The functions that draw import matplotlib (extra ``train``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convattn.explain.figures import ACCENT, INK, LINE, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PEER = "#c8742a"  # networks of other packages
_PICTURES = (".png", ".svg")


def check_picture(path: str | Path) -> None:
    """Check, before anything is measured, that a figure can be written to ``path``.

    Raises:
        ValueError: the name ends neither in .png nor in .svg.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if Path(path).suffix not in _PICTURES:
        raise ValueError(f"a picture must end in .png or .svg, got {str(path)!r}")
    import matplotlib as mpl

    assert mpl


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure on a white background; the same figure gives the same bytes."""
    import matplotlib as mpl

    form = Path(path).suffix[1:]
    metadata = {"Software": None} if form == "png" else {"Date": None}
    with mpl.rc_context({"svg.hashsalt": "convattn"}):
        figure.savefig(path, format=form, dpi=130, facecolor="white", metadata=metadata)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(axes: Axes, *, title: str, x: str = "", y: str = "") -> None:
    """Set title, labels, and the colours of grid and axes."""
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)


def speed_figure(group: dict[str, Any]) -> Figure:
    """Draw the models of a group as bars of images per second, with quartiles."""
    runs = group["runs"]
    figure = new_figure(7.0, 1.1 + 0.42 * len(runs))
    axes = figure.subplots()
    rows = range(len(runs))[::-1]
    for row, run in zip(rows, runs.values(), strict=True):
        summary, images = run["summary"], run["images"]
        speed = images / summary["median"]
        spread = [
            [speed - images / summary["high"]],
            [images / summary["low"] - speed],
        ]
        axes.barh(row, speed, height=0.6, color=ACCENT if row == len(runs) - 1 else MUTED)
        axes.errorbar(speed, row, xerr=spread, color=INK, capsize=3, linewidth=1)
        axes.annotate(
            f"{speed:,.1f}",
            (images / summary["low"], row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9,
        )
    settings = group["settings"]
    title = f"{settings['mode']}, {settings['dtype']}, {settings['batch']} images"
    style(axes, title=title[0].upper() + title[1:], x="images per second")
    axes.set_yticks(list(rows), list(runs), color=INK)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    return figure
