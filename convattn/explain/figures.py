"""Charts of a run, drawn once by matplotlib: as PNG for a file, as SVG for a page.

The SVG names its colours by CSS variables (``--ink``, ``--muted``, ``--line``, ``--accent``), so
that the page decides between light and dark. matplotlib is imported by the functions that draw.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convattn.names import shown
from convattn.runs.confusion import Confusion
from convattn.runs.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Epochs = Sequence[dict[str, float]]

INK, MUTED, LINE, ACCENT = "#1b2330", "#6b7686", "#d9dee6", "#2f66d0"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent"}
_SMALL_TEXT = 9.0
# Beyond this many classes a matrix carries no numbers, and names would overlap.
MAX_NUMBERED_CLASSES = 30
_MAX_CELLS = 200
_MAX_NAME = 16


def curves_figure(epochs: Epochs) -> Figure:
    """Draw loss, accuracy and learning rate over the epochs, side by side.

    Args:
        epochs: rows of ``metrics.csv``; a column that no row has is left out.
    """
    figure = _figure(width=11.0, height=3.3)
    panels = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    for axes, draw in zip(panels, CURVES.values(), strict=True):
        draw(axes, epochs)
    return figure


def curve_figure(name: str, epochs: Epochs) -> Figure:
    """Draw one panel of the curves: ``loss``, ``accuracy`` or ``learning rate``."""
    figure = _figure(width=4.0, height=2.7)
    CURVES[name](figure.subplots(), epochs)
    return figure


def confusion_figure(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: the stronger a cell, the larger its share of the true class.

    Up to 30 classes carry names and counts. Beyond, the matrix is a picture without numbers;
    beyond 200, neighbouring classes share a cell, which shows their largest share.

    Args:
        confusion: counts by (true class, predicted class).
        class_names: names in the order of the labels.
    """
    classes = len(confusion)
    numbered = classes <= MAX_NUMBERED_CLASSES
    side = max(3.4, 1.4 + 0.42 * classes) if numbered else 6.0
    figure = _figure(width=side, height=side)
    axes = figure.subplots()
    opacity = _opacity(Confusion.from_json(confusion))
    extent = (-0.5, classes - 0.5, classes - 0.5, -0.5)
    axes.imshow(_tint(opacity), interpolation="none", extent=extent)
    axes.set_xlabel("predicted", color=MUTED, fontsize=_SMALL_TEXT)
    axes.set_ylabel("true", color=MUTED, fontsize=_SMALL_TEXT)
    _style(axes, grid=False)
    if numbered:
        _number_cells(axes, np.asarray(confusion), opacity)
        _name_classes(axes, class_names)
    return figure


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a picture on white."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")
    return Path(path)


def to_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element that takes colours and font from its page."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Group ids repeat from figure to figure, and a page may hold several.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw_loss(axes: Axes, epochs: Epochs) -> None:
    _plot(axes, epochs, {"train_loss": "training", "val_loss": "validation"})
    _style(axes, title="Loss")
    axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Axes, epochs: Epochs) -> None:
    from matplotlib.ticker import PercentFormatter

    _plot(axes, epochs, {"train_acc": "training", "val_top1": "validation"})
    _style(axes, title="Accuracy (top-1)")
    axes.set_ylim(top=1.005)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def _draw_learning_rate(axes: Axes, epochs: Epochs) -> None:
    _plot(axes, epochs, {"lr": ""})
    _style(axes, title="Learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")


CURVES: dict[str, Callable[[Axes, Epochs], None]] = {
    "loss": _draw_loss,
    "accuracy": _draw_accuracy,
    "learning rate": _draw_learning_rate,
}


def _plot(axes: Axes, epochs: Epochs, columns: dict[str, str]) -> None:
    """Plot columns by epoch; the last one is the one that matters and gets the accent."""
    for column, label in columns.items():
        last = column == list(columns)[-1]
        points = [(row["epoch"], row[column]) for row in epochs if column in row]
        if points:
            style: dict[str, Any] = {"color": ACCENT if last else MUTED, "label": label}
            marker = "o" if len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), lw=1.8 if last else 1.4, marker=marker, **style)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, labelcolor="linecolor", fontsize=_SMALL_TEXT)


def _style(axes: Axes, *, title: str = "", grid: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=_SMALL_TEXT)
    if grid:
        axes.set_title(title, loc="left", color=INK, fontsize=10.5, fontweight="bold")
        axes.grid(axis="y", color=LINE, lw=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel("epoch", color=MUTED, fontsize=_SMALL_TEXT)


def _opacity(confusion: Confusion) -> np.ndarray:
    """Return the strongest share of each block of classes, in at most 200 x 200 blocks.

    The square root keeps a confusion of a few per cent visible beside the diagonal.
    """
    block = -(-len(confusion) // _MAX_CELLS)
    cells = -(-len(confusion) // block)
    opacity = np.zeros((cells, cells))
    for true in range(len(confusion)):
        counts = confusion.row(true)
        images = sum(counts.values())
        for predicted, count in counts.items():
            cell = true // block, predicted // block
            opacity[cell] = max(opacity[cell], (count / images) ** 0.5)
    return opacity


def _tint(opacity: np.ndarray) -> np.ndarray:
    """Colour cells by the opacity of the accent: it reads on a light and on a dark page."""
    from matplotlib.colors import to_rgb

    tinted = np.empty((*opacity.shape, 4))
    tinted[..., :3] = to_rgb(ACCENT)
    tinted[..., 3] = opacity
    return tinted


def _number_cells(axes: Axes, counts: np.ndarray, opacity: np.ndarray) -> None:
    size = _SMALL_TEXT if counts.max(initial=0) < 1000 else _SMALL_TEXT - 2
    for row, column in np.argwhere(counts > 0):
        colour = "white" if opacity[row, column] > 0.6 else INK
        count = str(counts[row, column])
        axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=size)
    lines = np.arange(len(counts) + 1) - 0.5
    axes.hlines(lines, -0.5, len(counts) - 0.5, color=LINE, lw=0.6)
    axes.vlines(lines, -0.5, len(counts) - 0.5, color=LINE, lw=0.6)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    # A dollar sign would start a formula.
    names = [_shorten(shown(name)).replace("$", r"\$") for name in class_names]
    turned = max(map(len, names), default=0) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0)
    axes.set_yticks(range(len(names)), names)


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
