"""Charts of a run, drawn by matplotlib: PNG for a file, SVG for a page.

The colours of the SVG are CSS variables (``--ink``, ``--muted``, ``--line``, ``--accent``), which
the page sets for its light and its dark form. The functions that draw import matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
# A matrix of more classes has no numbers and no names, which would overlap.
MAX_NUMBERED_CLASSES = 30
_MAX_CELLS = 200
_MAX_NAME = 16
_NAMED_CURVES = 10
_DASHES: tuple[Any, ...] = (
    "-", "--", ":", "-.", (0, (8, 3)), (0, (1, 3)), (0, (5, 2, 1, 2, 1, 2)), (0, (3, 5)),
)  # fmt: skip
_NOT_SHARES = ("epoch", "step", "images_per_second")
_WORDS = {"train": "training", "val": "validation", "acc": "accuracy", "lr": "learning rate"}
_WORDS |= {"top1": "top-1", "top5": "top-5", "map": "AP", "map50": "AP50"}
_WORDS |= {"miou": "mean IoU", "macc": "class accuracy"}


class Panel(NamedTuple):
    """One chart of the curves: a title, and the columns of ``metrics.csv`` that it draws."""

    title: str
    columns: tuple[str, ...]


def panels(
    epochs: Epochs, columns: Iterable[str] | None = None, losses: Collection[str] = ()
) -> list[Panel]:
    """Return the charts of a training: losses, shares from 0 to 1, and the learning rate.

    Args:
        epochs: rows of ``metrics.csv``.
        columns: the columns to draw; by default all that belong to one of the charts.
        losses: columns that are losses, in addition to those whose names say so.

    Returns:
        The charts that have a column with a finite number.
    """
    names = dict.fromkeys(name for row in epochs for name in row)
    values = {
        name: [row[name] for row in epochs if math.isfinite(row.get(name, math.nan))]
        for name in (names if columns is None else columns)
    }
    found = [name for name, numbers in values.items() if numbers]
    losses = [name for name in found if is_loss(name) or name in losses]
    shares = [
        name
        for name in found
        if not (name in losses or name in _NOT_SHARES or _is_rate(name))
        and all(0 <= value <= 1 for value in values[name])
    ]
    rates = [name for name in found if _is_rate(name)]
    charts = {"Loss": losses, "Metrics": shares, "Learning rate": rates}
    return [Panel(title, tuple(group)) for title, group in charts.items() if group]


def is_loss(name: str) -> bool:
    """Return whether a column is a loss, by its name."""
    return "loss" in name


def _is_rate(name: str) -> bool:
    return name == "lr" or name.startswith("lr_")


def column_title(name: str) -> str:
    """Return the name of a column in words: "val_top1" is "validation top-1"."""
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def curves_figure(charts: Sequence[Panel], epochs: Epochs) -> Figure:
    """Draw charts of a training, as `panels` returns them, side by side."""
    figure = _figure(width=11.0 * max(1, len(charts)) / 3, height=3.3)
    places = figure.subplots(1, max(1, len(charts)), squeeze=False)[0]
    for axes, panel in zip(places, charts, strict=False):
        _draw(axes, panel, epochs)
    return figure


def curve_figure(panel: Panel, epochs: Epochs) -> Figure:
    """Draw one chart of a training."""
    figure = _figure(width=4.0, height=2.7)
    _draw(figure.subplots(), panel, epochs)
    return figure


def confusion_figure(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], *, shares: bool = False
) -> Figure:
    """Draw a confusion matrix: the stronger the colour of a cell, the larger its share of a row.

    Up to 30 classes have names and numbers. More classes are drawn without numbers; of more than
    200, neighbouring classes share a cell, which shows their largest share.

    Args:
        confusion: counts by (true class, predicted class).
        class_names: names in the order of the labels.
        shares: whether the numbers are shares of the rows in per cent, instead of counts.
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
        _number_cells(axes, np.asarray(confusion), opacity, shares)
        _name_classes(axes, class_names)
    return figure


def precision_recall_figure(
    curves: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> Figure:
    """Draw precision by recall; of many classes, lines without names.

    Args:
        curves: precisions at recalls evenly spaced from 0 to 1, by class; their mean is drawn on
            top.
        colours: the colour of each class; up to ten classes are drawn in their colours.
    """
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    figure = _figure(width=5.2, height=3.6)
    axes = figure.subplots()
    is_named = len(curves) <= _NAMED_CURVES
    for name, values in curves.items():
        style = {"color": colours.get(name, MUTED), "lw": 1.4} if is_named else {"color": LINE}
        label = _shorten(shown(name)).replace("$", r"\$") if is_named else None
        axes.plot(np.linspace(0, 1, len(values)), values, label=label, **style)
    if len(curves) > 1:
        values = np.mean([*curves.values()], 0)
        axes.plot(np.linspace(0, 1, len(values)), values, color=INK, lw=2.4, label="all classes")
    _style(axes)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", color=MUTED, fontsize=_SMALL_TEXT)
    axes.set_ylabel("precision", color=MUTED, fontsize=_SMALL_TEXT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.2))
        axis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(
        frameon=False,
        labelcolor=MUTED,
        fontsize=_SMALL_TEXT,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file on white, whole or not at all."""
    with replacing(Path(path)) as temporary, _quiet():
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")
    return Path(path)


def to_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element with the colours and the font of its page."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}), _quiet():
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # The ids of groups repeat from figure to figure, and a page may hold several figures.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop warnings of matplotlib: the font of a file lacks the letters of some names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _draw(axes: Axes, panel: Panel, epochs: Epochs) -> None:
    from matplotlib.ticker import PercentFormatter

    _plot(axes, panel, epochs)
    _style(axes, title=panel.title)
    if panel.title == "Metrics":
        axes.set_ylim(top=1.005)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        return
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if panel.title == "Loss" else 0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _plot(axes: Axes, panel: Panel, epochs: Epochs) -> None:
    """Plot columns by epoch: those of training in grey, the others in the accent."""
    drawn = {MUTED: 0, ACCENT: 0}
    for column in panel.columns:
        points = [(row["epoch"], row[column]) for row in epochs if column in row]
        colour = MUTED if column.startswith("train") else ACCENT
        style: dict[str, Any] = {"color": colour, "label": _label(column, panel)}
        style["linestyle"] = _DASHES[drawn[colour] % len(_DASHES)]
        marker = "o" if len(points) == 1 else ""
        axes.plot(
            *zip(*points, strict=True), lw=1.4 if colour == MUTED else 1.8, marker=marker, **style
        )
        drawn[colour] += 1
    if len(axes.lines) > 1:
        axes.legend(frameon=False, labelcolor="linecolor", fontsize=_SMALL_TEXT)


def _label(column: str, panel: Panel) -> str:
    """Return the words of a column that the title of its chart does not say."""
    words = [word for word in column.split("_") if word != panel.title.lower()]
    return column_title("_".join(words or [column]))


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
    """Colour cells by the opacity of the accent, which suits a light and a dark page."""
    from matplotlib.colors import to_rgb

    tinted = np.empty((*opacity.shape, 4))
    tinted[..., :3] = to_rgb(ACCENT)
    tinted[..., 3] = opacity
    return tinted


def _number_cells(axes: Axes, counts: np.ndarray, opacity: np.ndarray, shares: bool) -> None:
    size = _SMALL_TEXT if shares or counts.max(initial=0) < 1000 else _SMALL_TEXT - 2
    for row, column in np.argwhere(counts > 0):
        colour = "white" if opacity[row, column] > 0.6 else INK
        count = counts[row, column]
        text = _percent(count / counts[row].sum()) if shares else str(count)
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    lines = np.arange(len(counts) + 1) - 0.5
    axes.hlines(lines, -0.5, len(counts) - 0.5, color=LINE, lw=0.6)
    axes.vlines(lines, -0.5, len(counts) - 0.5, color=LINE, lw=0.6)


def _percent(share: float) -> str:
    """Return a share in per cent without the sign, "" for less than half a per cent."""
    return f"{share:.0%}".removesuffix("%") if share >= 0.005 else ""


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    # A dollar sign would start a formula.
    names = [_shorten(shown(name)).replace("$", r"\$") for name in class_names]
    turned = max(map(len, names), default=0) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0)
    axes.set_yticks(range(len(names)), names)


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
