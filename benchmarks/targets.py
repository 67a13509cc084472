"""The targets, and whether the results reach them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.networks import CONVNEXT, RESNET, SWIN
from benchmarks.scaling import OPERATOR
from convattn.bench.statistics import Summary, speed_ratio
from convattn.bench.table import ratio_text

Document = dict[str, Any]
LABELS = {SWIN: "Swin-T", CONVNEXT: "ConvNeXt-T", RESNET: "ResNet-50"}
FLAT, EVEN = 1.15, 1.05  # cost per pixel relative to the smallest image: the bound and the aim


@dataclass(frozen=True)
class Target:
    """The speed of a network relative to another network."""

    script: str
    group: str  # the beginning of the group's name
    ours: str
    theirs: str
    least: float
    aim: float
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Row:
    """A row of the table of targets."""

    what: str
    least: str
    aim: str
    measured: str
    verdict: str
    command: str  # the words after ``python -m benchmarks.``


TARGETS = (
    Target("backbones", "ResNets", "acmix_resnet50", RESNET, 0.6, 1.0, ("float32",)),
    Target("backbones", "transformers", "acmix_swin_tiny", SWIN, 0.8, 0.95),
    Target("backbones", "transformers", "glnet_stl", SWIN, 1.25, 1.6),
    Target("backbones", "transformers", "glnet_stl", CONVNEXT, 1.0, 1.25),
    Target("backbones", "transformers", "glnet_4g", SWIN, 1.0, 1.3),
    Target("backbones", "transformers", "glnet_4g", CONVNEXT, 0.8, 1.0),
    Target("training", "GLNet and Swin", "glnet_stl", SWIN, 1.1, 1.4),
    Target("training", "ResNets", "acmix_resnet50", RESNET, 0.4, 0.8),
)
TARGET_SCRIPTS = frozenset({"ops", "scaling"}.union(target.script for target in TARGETS))
_SLIDING = (("forward", 20, 50), ("forward + backward", 10, 25))
_MEMORY = (8, 20)


def target_rows(documents: dict[str, Document]) -> list[Row]:
    """Return a row for every target, also for targets without results."""
    return [
        *_sliding_rows(documents.get("ops")),
        *(row for target in TARGETS for row in _network_rows(target, documents)),
        *_scaling_rows(documents.get("scaling")),
    ]


def verdict(value: float, least: float, aim: float) -> str:
    """Return whether a value reaches the target or the aim; larger is better."""
    return "aim reached" if value >= aim else "reached" if value >= least else "missed"


def _network_rows(target: Target, documents: dict[str, Document]) -> Iterator[Row]:
    document = documents.get(target.script)
    step = "one training step of " if target.script == "training" else ""
    what = f"{step}`{target.ours}` against {LABELS[target.theirs]}"
    bounds = (f"{target.least:g}x", f"{target.aim:g}x")
    found = False
    command = _command(target.script, target.group, document)
    for group in _groups(document, f"{target.group}, "):
        runs, settings = group["runs"], group["settings"]
        found = True
        how = settings["dtype"] + (", compiled" if settings["compile"] else "")
        failed = [name for name in (target.ours, target.theirs) if name not in runs]
        if failed:
            text = f"`{failed[0]}` failed, see below"
            yield Row(f"{what}, {how}", *bounds, text, "missed", command)
            continue
        ours, theirs = runs[target.ours], runs[target.theirs]
        text = ratio_text(ours, theirs)
        gpu = settings["device"] != "cpu"
        if gpu or settings["dtype"] in target.dtypes:
            ratio = speed_ratio(ours["seconds"], theirs["seconds"]).median
            reached = verdict(ratio, target.least, target.aim)
            yield Row(f"{what}, {how}", *bounds, text, reached, command)
        else:
            yield Row(f"{what}, {how}", "-", "-", text, "-", command)
    if not found:
        yield Row(what, *bounds, "not measured yet", "-", command)


def _sliding_rows(document: Document | None) -> Iterator[Row]:
    for mode, least, aim in _SLIDING:
        what = f"sliding window against the reference, {mode}"
        command = _command("ops", f"sliding*{mode},", document)
        groups = [
            group
            for group in _groups(document, "sliding window")
            if group["settings"]["mode"] == mode and {"auto", "reference"} <= set(group["runs"])
        ]
        for dtype in dict.fromkeys(group["settings"]["dtype"] for group in groups):
            same = [group["runs"] for group in groups if group["settings"]["dtype"] == dtype]
            speeds = [speed_ratio(r["auto"]["seconds"], r["reference"]["seconds"]) for r in same]
            judged = dtype == "float32" or document is None or document["machine"]["gpu"]
            yield _range_row(
                f"{what}, {dtype}",
                [s.median for s in speeds],
                *(least, aim),
                bool(judged),
                "x",
                command,
            )
            shares = [r["reference"]["memory_bytes"] / r["auto"]["memory_bytes"] for r in same]
            memory = f"peak memory of the sliding window against the reference, {mode}, {dtype}"
            yield _range_row(memory, shares, *_MEMORY, bool(judged), "1/", command)
        if not groups:
            yield Row(what, f"{least}x", f"{aim}x", "not measured yet", "-", command)


def _range_row(
    what: str,
    values: list[float],
    least: float,
    aim: float,
    judged: bool,
    unit: str,
    command: str,
) -> Row:
    def text(value: float) -> str:
        number = f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
        return f"{unit}{number}" if unit == "1/" else f"{number}{unit}"

    low, high = min(values), max(values)
    shapes = f"{text(low)} to {text(high)}, {len(values)} shapes"
    if not judged:
        return Row(what, "-", "-", shapes, "-", command)
    return Row(what, text(least), text(aim), shapes, verdict(low, least, aim), command)


def _scaling_rows(document: Document | None) -> Iterator[Row]:
    found = False
    for group in _groups(document, ""):
        name = group["settings"]["of"]
        if name != OPERATOR and not name.startswith("glnet"):
            continue
        found = True
        label = name if name == OPERATOR else f"`{name}`"
        command = _command("scaling", name, document)
        sizes = pixel_costs(group)
        if group["errors"]:
            failed = f"{', '.join(group['errors'])} failed, see below"
            what = f"{label}: time and memory per pixel"
            yield Row(what, f"{FLAT:g}x", f"{EVEN:g}x", failed, "missed", command)
        if not sizes:
            continue
        last = sizes[-1]
        span = f"{sizes[0].size:,} to {last.size:,} px"
        for kind, ratios in (
            ("time", [s.time for s in sizes]),
            ("memory", [s.memory for s in sizes]),
        ):
            worst = max(ratio.median for ratio in ratios)
            text = f"{ratios[-1].median:.2f}x at {last.size:,} px, at most {worst:.2f}x"
            reached = verdict(-worst, -FLAT, -EVEN)
            what = f"{label}: {kind} per pixel, {span}"
            yield Row(what, f"{FLAT:g}x", f"{EVEN:g}x", text, reached, command)
    if not found:
        what = "GLMix: time and memory per pixel, 128 to 1,024 px"
        command = _command("scaling", OPERATOR, document)
        yield Row(what, f"{FLAT:g}x", f"{EVEN:g}x", "not measured yet", "-", command)


@dataclass(frozen=True)
class PixelCost:
    """Time and memory per pixel, and their ratios to those of the smallest image."""

    size: int
    nanoseconds: float
    bytes: float
    time: Summary
    memory: Summary


def pixel_costs(group: dict[str, Any]) -> list[PixelCost]:
    """Return the costs per pixel, for the smallest image first."""
    runs = sorted(group["runs"].values(), key=lambda run: run["size"])
    first = runs[0] if runs else {}

    def pixels(run: dict[str, Any]) -> int:
        return int(run["images"] * run["size"] ** 2)

    def scaled(run: dict[str, Any]) -> list[float]:
        return [second / pixels(run) for second in run["seconds"]]

    costs = []
    for run in runs:
        memory = run["memory_bytes"] / pixels(run)
        share = memory / (first["memory_bytes"] / pixels(first))
        costs.append(
            PixelCost(
                size=run["size"],
                nanoseconds=run["summary"]["median"] / pixels(run) * 1e9,
                bytes=memory,
                time=speed_ratio(scaled(first), scaled(run)),
                memory=Summary(share, share, share, share, share, 1),
            )
        )
    return costs


def _command(script: str, only: str, document: Document | None) -> str:
    words = [script, "--only", repr(only)]
    if document and document["machine"]["gpu"]:
        words += ["--device", "cuda"]
    return " ".join(words)


def _groups(document: Document | None, start: str) -> list[dict[str, Any]]:
    groups = document["groups"] if document else []
    return [group for group in groups if group["name"].startswith(start)]
