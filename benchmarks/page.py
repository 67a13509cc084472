"""Print docs/performance.md, or write it with its figures.

    python -m benchmarks.page > docs/performance.md
    python -m benchmarks.page --write

The second command also draws docs/images/performance-*.png with matplotlib (extra ``train``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.paths import reasons
from benchmarks.tables import (
    dense_tables,
    describe,
    network_tables,
    operator_table,
    path_table,
    scaling_table,
    target_table,
)
from benchmarks.targets import TARGET_SCRIPTS, Document
from convattn.bench.record import read_document

SCRIPTS = ("ops", "backbones", "training", "scaling", "dense")
DOCS = Path(__file__).parents[1] / "docs"
_HERE = Path(__file__).parent
Machines = dict[str, dict[str, Document]]  # name of the machine -> script -> result


def load(folder: Path = RESULTS) -> Machines:
    """Return all results of a folder."""
    machines: Machines = {}
    for path in sorted(folder.glob("*.json")):
        name, _, script = path.stem.rpartition("-")
        if script in SCRIPTS:
            document = read_document(path)
            if document["groups"]:
                machines.setdefault(name, {})[script] = document
    return machines


def page(machines: Machines) -> str:
    """Return the text of the page, in Markdown."""
    cpus = {name: found for name, found in machines.items() if not _is_gpu(found)}
    gpus = {name: found for name, found in machines.items() if _is_gpu(found)}
    text = (_HERE / "page.md").read_text(encoding="utf-8")
    parts = {
        "machines": "\n\n".join(_machine(name, found) for name, found in cpus.items())
        or f"## CPU\n\n{_missing('')}\n\n{target_table({})}",
        "gpu": "\n\n".join(_machine(name, found) for name, found in gpus.items())
        or _missing(" --device cuda"),
        "size": "224 x 224",
        "paths": path_table(),
        "reasons": "\n".join(f"- {reason}." for reason in reasons()),
        "notes": (_HERE / "notes.md").read_text(encoding="utf-8").strip(),
    }
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def draw(machines: Machines, folder: Path = DOCS / "images") -> list[Path]:
    """Draw the figures of the page, and return their files."""
    from benchmarks.pictures import accuracy_figure, scaling_figure
    from convattn.bench.figures import save

    drawn = []
    for name, found in machines.items():
        for script, figure in (("backbones", accuracy_figure), ("scaling", scaling_figure)):
            if script in found:
                drawn.append(folder / _picture(name, script))
                save(figure(found[script]), drawn[-1])
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="write the page and draw its figures")
    args = parser.parse_args(argv)
    machines = load()
    if not args.write:
        print(page(machines), end="")
        return 0
    try:
        drawn = draw(machines)
    except ModuleNotFoundError as error:
        print(
            f"benchmarks.page --write needs {error.name}, which is not installed: "
            "pip install 'convattn[train]'",
            file=sys.stderr,
        )
        return 2
    (DOCS / "performance.md").write_text(page(machines), encoding="utf-8")
    print("\n".join(str(path) for path in (DOCS / "performance.md", *drawn)))
    return 0


def _machine(name: str, found: dict[str, Document]) -> str:
    first = next(iter(found.values()))["machine"]
    parts = [f"## {first['gpu'] or first['cpu']}"]
    if found.keys() & TARGET_SCRIPTS:
        values = f"Values are ratios of speed{_threads(found)}. The targets are for {_scope(first)}"
        parts += ["### Targets", target_table(found), values]
    if "backbones" in found:
        parts += [
            "### Backbones, evaluation",
            _image(name, "backbones", "Speed and accuracy; a larger dot means more multiply-adds"),
            "Speed, and the accuracy published in the papers (we have not trained on ImageNet). A "
            "larger dot means more multiply-adds; networks with this package's operators are blue.",
            network_tables(found["backbones"]),
            describe(found["backbones"]),
        ]
    if "training" in found:
        parts += ["### One training step", network_tables(found["training"])]
        parts += [describe(found["training"])]
    if "dense" in found:
        parts += [
            "### Detectors and segmenters",
            "One image. Mask R-CNN and UperNet have the sizes of the papers, the small detectors "
            "those of the recipe `small`. The networks have random weights, and every detector "
            "finds 100 objects. Batch norms of a training step use stored statistics, since there "
            "is only one image.",
            dense_tables(found["dense"]),
            describe(found["dense"]),
        ]
    if "scaling" in found:
        parts += [
            "### Time and memory per pixel",
            _image(name, "scaling", "Time and memory per pixel by the size of the image"),
            "Every call has the same number of pixels: many small images or one large image. The "
            "blocks of a GLNet's last stage have global attention, and so has every second block "
            "of `glnet_4g`'s third stage: their share of the time grows with the image.",
            scaling_table(found["scaling"]),
            describe(found["scaling"]),
        ]
    if "ops" in found:
        parts += [
            "### Operators",
            'The times of every path, in milliseconds per batch; "auto" is the path that is chosen '
            'without `backend=`. Peak memory of the reference / of "auto", without inputs and '
            "outputs.",
            operator_table(found["ops"]),
            describe(found["ops"]),
        ]
    missing = [f"`python -m benchmarks.{script}`" for script in SCRIPTS if script not in found]
    if missing:
        parts.append(f"Not measured on this machine yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _threads(found: dict[str, Document]) -> str:
    if _is_gpu(found):
        return ""
    counts = sorted({document["settings"]["threads"] for document in found.values()})
    several = "s" if counts[-1] > 1 else ""
    return f", all with {' or '.join(str(count) for count in counts)} thread{several}"


def _scope(machine: Document) -> str:
    if machine["gpu"]:
        return "bfloat16, with and without `torch.compile`."
    return (
        "the data types that they name. The target of the sliding window applies to float32 and to "
        "each of its shapes: the four stages of a ResNet, at stride 1 and 2."
    )


def _missing(options: str) -> str:
    commands = "\n".join(f"python -m benchmarks.{script}{options}" for script in SCRIPTS)
    return (
        f"Not measured yet. These commands measure it:\n\n```bash\n{commands}\n"
        "python -m benchmarks.page --write\n```"
    )


def _image(name: str, script: str, text: str) -> str:
    return f"![{text}](images/{_picture(name, script)})"


def _picture(name: str, script: str) -> str:
    return f"performance-{name}-{script}.png"


def _is_gpu(found: dict[str, Document]) -> bool:
    return bool(next(iter(found.values()))["machine"]["gpu"])


if __name__ == "__main__":
    sys.exit(main())
