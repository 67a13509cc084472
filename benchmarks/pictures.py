"""Pictures of the page."""

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
# Of the lines over the size of the image: ours blue, the others warm or grey.
_LINES = {OPERATOR: ACCENT, "glnet_stl": "#7aa5ee", "glnet_4g": "#123a85", SWIN: PEER, DEIT: MUTED}


def accuracy_figure(document: Document) -> Figure:
    """Draw speed against the papers' accuracy; the larger a dot, the more multiply-adds."""
    dtypes = list(dict.fromkeys(group["settings"]["dtype"] for group in document["groups"]))
    figure = new_figure(5.6 * len(dtypes), 4.8)
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        points = _points(document, dtype)
        _draw_points(axes, points)
        style(axes, title=dtype, x="images per second", y="top-1 on ImageNet-1k, paper's, %")
    for axes in panels[1:]:
        axes.set_ylabel("")
    return figure


def scaling_figure(document: Document) -> Figure:
    """Draw what a pixel costs as the image grows, against one of the smallest image."""
    figure = new_figure(10.5, 3.9)
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("time", "memory"), strict=True):
        for group in document["groups"]:
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
        _logarithmic(axes, [cost.size for cost in costs])
        style(axes, title=f"{kind.capitalize()} per pixel", x="pixels on a side")
        axes.set_ylabel(f"times that at {costs[0].size} pixels", color=MUTED)
        axes.set_ylim(bottom=0, top=max(1.5, axes.get_ylim()[1]))
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _points(document: Document, dtype: str) -> list[tuple[str, float, float, float]]:
    """Return (name, images/s, accuracy, multiply-adds) of all that have a published accuracy."""
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
    places = _label_places([(speed, accuracy) for _, speed, accuracy, _ in points])
    for (name, speed, accuracy, _), (dx, dy, side) in zip(points, places, strict=True):
        axes.annotate(
            _NAMES.get(name, name),
            (speed, accuracy),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7.5,
            color=INK,
        )
    axes.margins(x=0.1, y=0.08)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    axes.set_xlim(low / 1.8, high * 2.2)  # room for the names
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="minor", labelsize=9, colors=MUTED)


def _label_places(points: list[tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Return the offsets of labels: right of a dot, left or below it where something is near."""
    places: list[tuple[float, float, str]] = []
    for i, (x, y) in enumerate(points):
        near = [p for j, p in enumerate(points) if j != i and abs(p[1] - y) < 0.45]
        right = any(x <= other < x * 2.2 for other, _ in near)
        left = any(x / 6 < other < x for other, _ in near)
        if not right:
            places.append((9.0, 0.0, "left"))
        elif not left:
            places.append((-9.0, 0.0, "right"))
        else:
            above = max(near, key=lambda p: -abs(p[0] - x))[1] < y
            places.append((0.0, 11.0 if above else -11.0, "center"))
    return places


def _logarithmic(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.axhline(1, color=LINE, linewidth=1)
