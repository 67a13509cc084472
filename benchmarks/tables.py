"""Tables of the page, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.networks import CONVNEXT, DEIT, RESNET
from benchmarks.paths import SITUATIONS, path_rows
from benchmarks.targets import LABELS, Document, pixel_costs, target_rows
from convattn.bench.table import macs_text, ratio_text, size_text
from convattn.models import paper_row

# From the papers that papers.csv does not have (ImageNet-1k, 224 x 224, 1k classes only):
# arXiv 2201.03545 table 1, arXiv 2012.12877 table 5; and ResNet-50 as ACmix's paper trains it.
_TOP1 = {CONVNEXT: 82.1, DEIT: 72.2}
_ROW_OF = {RESNET: "baseline_resnet50"}


def top1(name: str) -> float | None:
    """Return a network's published accuracy on ImageNet-1k, in percent."""
    if name in _TOP1:
        return _TOP1[name]
    row = paper_row(_ROW_OF.get(name, name))
    return row.top1 if row else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a table whose first ``left`` columns are aligned left, the others right."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def target_table(documents: dict[str, Document]) -> str:
    """Return the table of the targets, with measured values and verdicts."""
    rows = target_rows(documents)
    return table(
        ("", "at least", "aim", "measured", "", "command: `python -m benchmarks.`..."),
        ((r.what, r.least, r.aim, r.measured, r.verdict, f"`{r.command}`") for r in rows),
    )


def network_tables(document: Document) -> str:
    """Return a table of the networks for each data type, and compiled or not."""
    parts = []
    for how, groups in _by_kind(document).items():
        rows = [
            (
                f"`{name}`",
                _number(run["images"] / run["summary"]["median"]),
                _spread(run),
                macs_text(run["macs"] / run["images"] / (3 if _trains(group) else 1)),
                f"{run['floor']['share_reached']:.0%}" if run["floor"] else "-",
                size_text(run["memory_bytes"]),
                _percent(top1(name)),
                _first_peer(name, group),
            )
            for group in groups
            for name, run in group["runs"].items()
        ]
        head = ("", "images/s", "quartiles", "multiply-adds", "of peak", "peak memory", "top-1")
        errors = [f"{n}: {e}" for group in groups for n, e in group["errors"].items()]
        text = table((*head, "speed against the 1x above"), rows)
        parts.append("\n\n".join([f"**{how}**", text, *errors]))
    return "\n\n".join(parts)


def dense_tables(document: Document) -> str:
    """Return a table of the detectors and segmenters of each group."""
    parts = []
    for group in document["groups"]:
        rows = [
            (
                f"`{name}`",
                _number(run["images"] / run["summary"]["median"]),
                _spread(run),
                f"{run['parameters'] / 1e6:.1f} M",
                macs_text(run["macs"]) if run["macs"] else "-",
                size_text(run["memory_bytes"]),
                _first_peer(name, group),
            )
            for name, run in group["runs"].items()
        ]
        head = ("", "images/s", "quartiles", "parameters", "multiply-adds", "peak memory")
        errors = [f"{name}: {error}" for name, error in group["errors"].items()]
        text = table((*head, "speed against the 1x above"), rows)
        parts.append("\n\n".join([f"**{group['name']}**", text, *errors]))
    return "\n\n".join(parts)


def operator_table(document: Document) -> str:
    """Return a row for every operator and shape: the reference, "auto", and the other paths."""
    rows, errors = [], []
    for group in document["groups"]:
        runs, settings = group["runs"], group["settings"]
        errors += [f"{group['name']}, {path}: {e}" for path, e in group["errors"].items()]
        if not {"auto", "reference"} <= set(runs):
            continue
        auto, plain = runs["auto"], runs["reference"]
        others = [
            f"{path} {_milliseconds(run)}"
            for path, run in runs.items()
            if path not in ("auto", "reference")
        ]
        others += [f"{path} failed" for path in group["errors"]]
        shape = f"({settings['channels']}, {settings['size'][0]}x{settings['size'][1]})"
        stride = settings.get("stride", 1)
        rows.append(
            (
                settings["operator"] + (f", stride {stride}" if stride > 1 else ""),
                shape,
                settings["mode"],
                settings["dtype"],
                _milliseconds(plain),
                _milliseconds(auto),
                ratio_text(auto, plain),
                f"{size_text(plain['memory_bytes'])} / {size_text(auto['memory_bytes'])}",
                f"{auto['floor']['share_reached']:.0%}" if auto["floor"] else "-",
                ", ".join(others),
            )
        )
    head = ("", "map", "", "type", "reference, ms", "auto, ms", "faster", "peak memory")
    text = table((*head, "of peak", "paths, ms"), rows, left=4)
    return "\n\n".join([text, *errors])


def scaling_table(document: Document) -> str:
    """Return time and memory per pixel by image size, and their ratios to the smallest image."""
    rows, errors = [], []
    for group in document["groups"]:
        name = group["settings"]["of"]
        errors += [f"{group['name']}, {size}: {e}" for size, e in group["errors"].items()]
        for cost in pixel_costs(group):
            rows.append(
                (
                    LABELS.get(name, f"`{name}`" if "_" in name else name),
                    f"{cost.size:,}",
                    _number(cost.nanoseconds),
                    f"{cost.time.median:.2f}x ({cost.time.low:.2f} - {cost.time.high:.2f})",
                    _number(cost.bytes),
                    f"{cost.memory.median:.2f}x",
                )
            )
    head = ("", "side, pixels", "ns per pixel", "time ratio", "bytes per pixel", "memory ratio")
    return "\n\n".join([table(head, rows), *errors])


def describe(document: Document) -> str:
    """Return machine, versions, rounds, peak and command of a result, as one line."""
    machine, versions = document["machine"], document["versions"]
    threads = document["settings"]["threads"]
    commits = dict.fromkeys(group["commit"] for group in document["groups"])
    what = (
        f"{machine['gpu']} ({machine['gpu_memory_gib']} GiB, CUDA {machine['cuda']})"
        if machine["gpu"]
        else f"{machine['cpu']}, {threads} thread{'s' if threads > 1 else ''} on "
        f"{machine['cores']} cores ({', '.join(machine['flags'])}), {machine['memory_gib']} GiB"
    )
    used = [f"{name} {versions[name]}" for name in ("torch", "timm", "triton") if versions[name]]
    if not machine["gpu"]:
        used.append("with C kernels" if versions.get("c_kernels") else "without C kernels")
    at = ", ".join(f"`{commit}`" for commit in commits if commit)
    peaks = {
        group["settings"]["dtype"]: group["peak"]["macs_per_second"]
        for group in document["groups"]
        if group["peak"]
    }
    peak = ", ".join(f"{dtype} {macs / 1e9:,.0f} G" for dtype, macs in peaks.items())
    rounds = [group["rounds"] for group in document["groups"]]
    count = f"{min(rounds)} to {max(rounds)}" if min(rounds) < max(rounds) else f"{rounds[0]}"
    return (
        f"{what}; {', '.join(used)}, commit {at or 'unknown'}. {count} rounds, "
        f"{_processes(document)}. Peak, multiply-adds per second: {peak}. "
        f"`{' '.join([*_variables(document), document['command']])}`"
    )


def path_table() -> str:
    """Return the table of the path that "auto" chooses, by operator, size and situation."""
    return table(("", "map", *SITUATIONS), path_rows(), left=2)


def _variables(document: Document) -> list[str]:
    return [f"{name}={value}" for name, value in document["environment"].items()]


def _processes(document: Document) -> str:
    """Return whether a group had one process or several; older results always had one."""
    found = {group["settings"].get("processes", "one") for group in document["groups"]}
    if found == {"one each"}:
        return "one process each"
    return "all in one process" if found == {"one"} else "some together, some in one process each"


def _by_kind(document: Document) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for group in document["groups"]:
        settings = group["settings"]
        how = f"{settings['dtype']}, {settings['batch']} images"
        found.setdefault(how + (", compiled" if settings["compile"] else ""), []).append(group)
    return found


def _first_peer(name: str, group: dict[str, Any]) -> str:
    runs = group["runs"]
    first = next(iter(runs))
    return "1x" if name == first else ratio_text(runs[name], runs[first])


def _trains(group: dict[str, Any]) -> bool:
    return bool(group["settings"]["mode"] == "training step")


def _spread(run: dict[str, Any]) -> str:
    images, summary = run["images"], run["summary"]
    return f"{_number(images / summary['high'])} - {_number(images / summary['low'])}"


def _milliseconds(run: dict[str, Any]) -> str:
    return _number(run["summary"]["median"] * 1e3)


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
