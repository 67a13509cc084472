"""Record the result of a training on real data, and write docs/evidence.md from all results.

    python -m examples.evidence runs/bccd-retinanet --data-part test
    python -m examples.evidence --write

The first command evaluates a finished run on a part of its data and writes a small file into
docs/evidence. The second command writes the page; the text of the page is in examples/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.names import counted
from convattn.runs.files import write_json
from convattn.runs.results import Run, read_run

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "evidence.md", DOCS / "evidence"
_TEMPLATE = Path(__file__).with_name("evidence.md")
# The numbers of a task that a result has, and the number of each class.
_METRICS = {
    "classification": ("accuracy", "top5"),
    "detection": ("map50", "map", "map75", "mask_map50", "mask_map", "mask_map75"),
    "segmentation": ("mean_iou", "pixel_accuracy", "mean_accuracy"),
}
_OF_CLASS = {"detection": "map50", "segmentation": "iou"}
_TITLES = {
    "map50": "AP50",
    "mask_map50": "mask AP50",
    "mean_iou": "mean IoU",
}
Result = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """A data set of the page.

    Args:
        name: the folder of the data, which is also the name in the page.
        metrics: the numbers that have a target.
        least: the target.
        aim: a higher target.
    """

    name: str
    metrics: tuple[str, ...]
    least: float
    aim: float


DATA_SETS = (
    DataSet("bccd", ("map50",), 0.70, 0.80),
    DataSet("camvid", ("mean_iou",), 0.45, 0.55),
    DataSet("coco16", ("map50", "mask_map50"), 0.9, 0.9),
)


def result_of(run: Run, evaluation: Mapping[str, Any]) -> Result:
    """Return the result of a run for docs/evidence, without the folders of this machine.

    Args:
        run: the files of the run.
        evaluation: the values of the evaluation, as in ``evaluation.json``.
    """
    settings, environment = run.settings, run.environment
    task = settings["task"]
    key = _OF_CLASS.get(task)
    return {
        "name": run.name,
        "task": task,
        "method": evaluation.get("method", ""),
        "model": evaluation["model"],
        "data": _data(settings["data"]),
        "part": evaluation["split"],
        "images": evaluation["images"],
        "metrics": {m: _rounded(evaluation[m]) for m in _METRICS[task] if m in evaluation},
        "per_class": {
            row["name"]: _rounded(row.get(key)) for row in evaluation["per_class"] if key
        },
        "parameters": evaluation["parameters"],
        "epoch": evaluation["epoch"],
        "epochs": len(run.epochs),
        "hours": _hours(run),
        "commands": [_public(start["command"]) for start in environment.get("starts", [])],
        "seed": settings.get("seed"),
        "commit": environment.get("git_commit"),
        "processor": environment.get("processor"),
        "cores": environment.get("cpu_cores"),
        "threads": environment.get("threads"),
        "gpus": environment.get("gpus", []),
        "torch": environment.get("torch"),
    }


def record(folder: Path, part: str, output: Path = RESULTS, workers: int | None = None) -> Path:
    """Evaluate a finished run on a part of its data, and write its result.

    Args:
        folder: the folder of the run.
        part: "val" for the images held out in the training, "train", or another part of the data
            set, such as "test".
        output: the folder of the results.
        workers: loading processes; None for the default.

    Returns:
        The file of the result.

    Raises:
        ValueError: the run is not finished, or the data has no such part.
    """
    from convattn.tasks.table import evaluate

    run = read_run(folder)
    if not run.settings or not run.epochs:
        raise ValueError(f"{folder} is not a finished run: it has no configuration or no metrics")
    if part == "train":
        found = evaluate(folder, split="train", workers=workers)
    elif part == "val":
        found = evaluate(folder, split="val", workers=workers)
    else:
        found = evaluate(folder, split="val", workers=workers, val_split=part)
    result = result_of(run, {**found.to_dict(), "split": part})
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{run.name}.json"
    write_json(path, result)
    return path


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Return the results of a folder, sorted by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def page(results: Sequence[Result]) -> str:
    """Return the text of docs/evidence.md."""
    text = _TEMPLATE.read_text(encoding="utf-8")
    for data_set in DATA_SETS:
        own = [r for r in results if r["data"].partition(":")[2] == data_set.name]
        text = text.replace("{{" + data_set.name + "}}", _section(data_set, own))
    return text


def _section(data_set: DataSet, results: Sequence[Result]) -> str:
    """Return the tables and the commands of a data set."""
    if not results:
        return "No result yet."
    titles = [_TITLES[metric] for metric in data_set.metrics]
    head = ("run", "model", "part", "images", *titles, "target", "parameters", "epochs", "hours")
    rows = [
        (
            r["name"],
            f"`{r['method']}`, `{r['model']}`",
            r["part"],
            f"{r['images']:,}",
            *(_percent(r["metrics"].get(metric)) for metric in data_set.metrics),
            _verdict(data_set, r),
            f"{r['parameters'] / 1e6:.1f} M",
            f"{r['epoch']} of {r['epochs']}",
            f"{r['hours']:.1f}",
        )
        for r in results
    ]
    parts = [_table(head, rows), _classes(results)]
    parts += [_details(result) for result in results]
    return "\n\n".join(parts)


def _classes(results: Sequence[Result]) -> str:
    """Return a table of the number of each class, for at most 20 classes."""
    names = list(dict.fromkeys(name for r in results for name in r["per_class"]))
    if not 1 <= len(names) <= 20:
        return ""
    rows = [[r["name"], *(_percent(r["per_class"].get(name)) for name in names)] for r in results]
    key = _TITLES.get(_OF_CLASS[results[0]["task"]], "IoU")
    return f"The {key} of each class:\n\n{_table(('run', *names), rows)}"


def _details(result: Result) -> str:
    """Return the machine and the commands of a result."""
    place = (
        ", ".join(result["gpus"])
        or f"{result['processor']}, {counted(result['threads'], 'thread')}"
    )
    commands = "\n".join(result["commands"])
    return (
        f"`{result['name']}`: {place}, torch {result['torch']}, commit "
        f"`{str(result['commit'])[:12]}`.\n\n```bash\n{commands}\n```"
    )


def _verdict(data_set: DataSet, result: Result) -> str:
    """Return whether the lowest of the numbers reaches the target."""
    lowest = min(result["metrics"].get(metric) or 0.0 for metric in data_set.metrics)
    reached = "aim reached" if lowest >= data_set.aim else "reached"
    return reached if lowest >= data_set.least else f"missed ({data_set.least:.0%})"


def _hours(run: Run) -> float:
    """Return the hours of the training, without validation."""
    speeds = [row["images_per_second"] for row in run.epochs if row.get("images_per_second")]
    data = json.loads((run.folder / "data.json").read_text(encoding="utf-8"))
    return round(sum(data["train"] / speed for speed in speeds) / 3600, 2)


def _data(name: str) -> str:
    """Return the name of data without the folders above it."""
    kind, _, path = name.partition(":")
    return f"{kind}:{Path(path).name}"


def _public(command: str) -> str:
    """Return a command in which absolute paths are only the last of their names."""
    words = []
    for word in shlex.split(command):
        before, mark, path = word.rpartition(":" if ":/" in word else "=")
        words.append(f"{before}{mark}{Path(path).name}" if path.startswith("/") else word)
    return shlex.join(words)


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--data-part", default="val", help="val, train, or a part of the data such as test [val]"
    )
    parser.add_argument("--workers", type=int, help="loading processes")
    parser.add_argument("--write", action="store_true", help="write docs/evidence.md")
    args = parser.parse_args(argv)
    if args.run is not None:
        try:
            print(record(args.run, args.data_part, workers=args.workers))
        except (ValueError, OSError) as error:
            print(f"examples.evidence: {error}", file=sys.stderr)
            return 2
    if args.write:
        PAGE.write_text(page(read_results()), encoding="utf-8")
        print(PAGE)
    elif args.run is None:
        print(page(read_results()), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
