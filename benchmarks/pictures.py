"""Draw the figures of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.networks import DEIT, SWIN
from benchmarks.scaling import OPERATOR
from benchmarks.tables import top1
from benchmarks.targets import LABELS, Document, pixel_costs
from convattn.bench.figures import PEER, new_figure, style
from convattn.explain.figures import ACCENT, INK, LINE, MUTED
from convattn.models import list_models

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {**LABELS, DEIT: "DeiT-Ti"}
_SMALL = 7.5
_Box = tuple[float, float, float, float]  # left, right, bottom, top, in points
# Colours of the lines: blue for this package, orange and grey for other networks.
_LINES = {OPERATOR: ACCENT, "glnet_stl": "#7aa5ee", "glnet_4g": "#123a85", SWIN: PEER, DEIT: MUTED}


def accuracy_figure(document: Document) -> Figure:
    """Draw speed and published accuracy; a larger dot means more multiply-adds."""
    dtypes = list(dict.fromkeys(group["settings"]["dtype"] for group in document["groups"]))
    figure = new_figure(5.6 * len(dtypes), 4.8)
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        _draw_points(axes, _points(document, dtype))
        style(axes, title=dtype, x="images per second", y="top-1 on ImageNet-1k, paper's, %")
    for axes in panels[1:]:
        axes.set_ylabel("")
    figure.draw_without_rendering()  # computes the positions of the dots
    for axes, dtype in zip(panels, dtypes, strict=True):
        _name_points(axes, _points(document, dtype))
    return figure


def scaling_figure(document: Document) -> Figure:
    """Draw time and memory per pixel by image size, relative to the smallest image."""
    figure = new_figure(10.5, 3.9)
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("time", "memory"), strict=True):
        for group in (group for group in document["groups"] if group["runs"]):
            costs = pixel_costs(group)
            name = group["settings"]["of"]
            axes.plot(
                [cost.size for cost in costs],
                [getattr(cost, kind).median for cost in costs],
                color=_LINES.get(name, INK),
                marker="o",
                markersize=4,
                label=_NAMES.get(name, name) + (" (global attention)" if name == DEIT else ""),
            )
        sizes = sorted({run["size"] for g in document["groups"] for run in g["runs"].values()})
        _logarithmic(axes, sizes)
        style(axes, title=f"{kind.capitalize()} per pixel", x="pixels on a side")
        axes.set_ylabel("times that of the smallest image", color=MUTED)
        axes.set_ylim(bottom=0, top=max(1.5, axes.get_ylim()[1]))
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _points(document: Document, dtype: str) -> list[tuple[str, float, float, float]]:
    """Return (name, images/s, accuracy, multiply-adds) of networks with a published accuracy."""
    found: dict[str, tuple[str, float, float, float]] = {}
    for group in document["groups"]:
        settings: dict[str, Any] = group["settings"]
        if settings["dtype"] != dtype or settings["compile"]:
            continue
        for name, run in group["runs"].items():
            accuracy = top1(name)
            if accuracy is not None:
                images = run["images"]
                speed = images / run["summary"]["median"]
                found[name] = (name, speed, accuracy, run["macs"] / images)
    return list(found.values())


def _draw_points(axes: Axes, points: list[tuple[str, float, float, float]]) -> None:
    ours = set(list_models())
    axes.set_xscale("log")
    for name, speed, accuracy, macs in points:
        own = name in ours and not name.startswith(("baseline", "san", "pvt"))
        colour = ACCENT if own else PEER
        axes.scatter(speed, accuracy, s=macs / 1e9 * 40, color=colour, alpha=0.55, linewidth=0)
        axes.scatter(speed, accuracy, s=6, color=colour)
    axes.margins(x=0.1, y=0.08)
    if points:
        low, high = min(p[1] for p in points), max(p[1] for p in points)
        axes.set_xlim(low / 1.8, high * 2.2)  # space for the names
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="minor", labelsize=9, colors=MUTED)


def _name_points(axes: Axes, points: list[tuple[str, float, float, float]]) -> None:
    """Write each name beside its dot, at the first position that overlaps nothing."""
    scale = axes.figure.dpi / 72  # pixels per point
    places = [
        axes.transData.transform((speed, accuracy)) / scale for _, speed, accuracy, _ in points
    ]
    frame = [axes.get_window_extent().x0 / scale, axes.get_window_extent().x1 / scale]
    taken = [_box(x, y, 6, 6) for x, y in places]
    for (name, speed, accuracy, _), (x, y) in zip(points, places, strict=True):
        text = _NAMES.get(name, name)
        width = 0.3 * _SMALL * len(text)  # about half of the width
        beside = [(side * (width + 9), dy) for dy in (0, 9, -9, 16, -16) for side in (1, -1)]
        offsets = [*beside, (0, 13), (0, -13)]
        boxes = [_box(x + dx, y + dy, width, 0.55 * _SMALL) for dx, dy in offsets]
        crowds = [
            sum(_overlap(box, other) for other in taken)
            + 9 * (box[0] < frame[0] or box[1] > frame[1])
            for box in boxes
        ]
        best = crowds.index(min(crowds))
        taken.append(boxes[best])
        axes.annotate(
            text,
            (speed, accuracy),
            xytext=offsets[best],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SMALL,
            color=INK,
        )


def _box(x: float, y: float, half_width: float, half_height: float) -> _Box:
    return x - half_width, x + half_width, y - half_height, y + half_height


def _overlap(one: _Box, other: _Box) -> bool:
    across = one[0] < other[1] and other[0] < one[1]
    return across and one[2] < other[3] and other[2] < one[3]


def _logarithmic(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.axhline(1, color=LINE, linewidth=1, zorder=1)
