"""The report of a training run: one page that opens without a network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from convattn.explain import figures
from convattn.explain.page import (
    Chart,
    Charts,
    Part,
    Pictures,
    Section,
    Text,
    cell_text,
    number,
    percent,
)
from convattn.explain.sections import environment_rows
from convattn.names import shown
from convattn.runs.files import DamagedFileError, write_text
from convattn.runs.metrics import Column, best_epoch
from convattn.runs.results import Run, read_run

_MAX_ROWS = 1000
_BEST = ("val_top1", "-val_loss")
_NUMBERS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "loss": "validation loss",
    "images_per_second": "images/s, evaluation",
}
_LAST = ("parameters", "images_per_second")
_NOT_RESULTS = ("images", "num_classes", "epoch")


def write_report(
    run_dir: str | Path,
    *,
    parts: Sequence[Part] = (),
    pictures: Pictures | None = None,
    columns: Sequence[str] | None = None,
    metrics: Sequence[Column] = (),
    numbers: Mapping[str, str] | None = None,
    best: tuple[str, ...] = _BEST,
    seconds: float | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` and ``curves.png`` into a run folder, each whole or not at all.

    The page is one file without references to other files. A section whose files are missing is
    left out: after an interrupted training, the page has the curves and the configuration. A
    section that cannot be drawn is a line in the page and no error. Shares in the files are from 0
    to 1.

    Args:
        run_dir: folder with any of ``metrics.csv``, ``evaluation.json``, ``config.yaml``,
            ``environment.json`` and ``broken_images.txt`` (a path per line).
        parts: the sections of the task, in their order.
        pictures: the validation images and the model, for the parts; without them, the parts say
            in words what they can.
        columns: columns of ``metrics.csv`` to draw; by default losses, shares and the learning
            rate, see `convattn.explain.figures.panels`.
        metrics: the task's; they say how a number is written. Without, its name and value do.
        numbers: titles of the evaluation's numbers at the top of the page, by their names; by
            default all its numbers.
        best: the rule of the best epoch, see `convattn.runs.metrics.score`.
        seconds: the duration of the training.
        notes: further lines at the top of the page.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: ``run_dir`` is not a folder.
        OSError: the page cannot be written.
    """
    run = read_run(run_dir)
    said = [*run.notes, *notes]
    content = _summary(run, seconds, metrics, numbers, best, said)
    found = [_curves(run, columns, metrics, content["best"], said)]
    for name, part in parts:
        with _section(name, said):
            found.append(part(run, pictures))
    content["sections"] = [section for section in found if section is not None]
    page = _pages().get_template("report.html").render(content, notes=list(dict.fromkeys(said)))
    path = run.folder / "report.html"
    # A file name that is not UTF-8 holds surrogates, which a page cannot hold.
    write_text(path, page.encode("utf-8", "backslashreplace").decode())
    return path


@contextlib.contextmanager
def _section(name: str, notes: list[str]) -> Iterator[None]:
    """Turn an error while a section is drawn into a line in the page."""
    try:
        yield
    except DamagedFileError as error:
        notes.append(str(error))
    except Exception as error:
        notes.append(f"This page has no {name}: {type(error).__name__}: {error}")


def _pages() -> Environment:
    pages = Environment(
        loader=PackageLoader("convattn.explain"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["percent"] = percent
    pages.filters["number"] = number
    pages.filters["cell"] = cell_text
    return pages


def _summary(
    run: Run,
    seconds: float | None,
    metrics: Sequence[Column],
    numbers: Mapping[str, str] | None,
    rule: tuple[str, ...],
    notes: list[str],
) -> dict[str, Any]:
    kinds = {column.name.removeprefix("val_"): column.kind for column in metrics}
    content: dict[str, Any] = {
        "run": run,
        "model_name": _model_name(run),
        "data_name": run.described("data"),
        "version": run.environment.get("convattn", ""),
        "headline": [],
        "starts": run.environment.get("starts", []),
        "best": None,
        "max_rows": _MAX_ROWS,
        "environment": [],
    }
    with _section("best epoch", notes):
        content["best"] = _best(run, kinds, rule)
    with _section("results", notes):
        content["headline"] = _headline(run, kinds, numbers, seconds, content["best"], rule, notes)
    with _section("environment", notes):
        content["environment"] = environment_rows(run)
    return content


def _model_name(run: Run) -> str:
    """Return the name of the model, after that of its method if it has one."""
    method = run.settings.get("method")
    return f"{shown(method)} with {run.described('model')}" if method else run.described("model")


def _best(run: Run, kinds: Mapping[str, str], rule: tuple[str, ...]) -> dict[str, str] | None:
    """Return the best epoch of a run in words; None if no epoch has the metric of the rule."""
    row = best_epoch(run.epochs, rule)
    if row is None:
        return None
    name = rule[0].removeprefix("-")
    return {
        "epoch": number(row["epoch"]),
        "metric": figures.column_title(name),
        "value": _result(name, row[name], kinds),
    }


def _headline(
    run: Run,
    kinds: Mapping[str, str],
    numbers: Mapping[str, str] | None,
    seconds: float | None,
    best: Any,
    rule: tuple[str, ...],
    notes: list[str],
) -> list[tuple[str, str]]:
    """Return the names and texts of the numbers at the top of the page, the best metric first.

    A metric that is no number becomes a note.
    """
    first = [name.removeprefix("-").removeprefix("val_") for name in rule]
    known = run.evaluation if numbers is None else numbers
    order = [*first, *(key for key in known if key not in (*first, *_LAST)), *_LAST]
    titles = {**_NUMBERS, **(numbers or {})}
    for key in kinds:
        if not isinstance(value := run.evaluation.get(key, 0), int | float):
            reason = f"its {key!r} is a {type(value).__name__}"
            notes.append(str(DamagedFileError(run.folder / "evaluation.json", reason)))
    left_out = (*_NOT_RESULTS, *(("top5",) if len(run.class_names) <= 5 else ()))  # always right
    found = [
        (titles.get(key, figures.column_title(key)), _result(key, value, kinds))
        for key in dict.fromkeys(order)
        if isinstance(value := run.evaluation.get(key), int | float)
        and not isinstance(value, bool)
        and key not in left_out
    ]
    if best and not run.evaluation:
        found.append((f"best {best['metric']} so far", best["value"]))
    if seconds is not None:
        found.append(("training time", _duration(seconds)))
    return found


def _curves(
    run: Run,
    columns: Sequence[str] | None,
    metrics: Sequence[Column],
    best: Mapping[str, str] | None,
    notes: list[str],
) -> Section | None:
    """Return the curves of the metrics, and write them into ``curves.png``."""
    charts = []
    with _section("curves", notes):
        losses = [column.name for column in metrics if column.kind == "loss"]
        found = figures.panels(run.epochs, columns, losses)
        if found:
            png = figures.curves_figure(found, run.epochs)
            figures.save_png(png, run.folder / "curves.png")
        for panel in found:
            svg = figures.to_svg(figures.curve_figure(panel, run.epochs))
            charts.append(Chart(f"{panel.title} by epoch", svg))
    if not charts:
        return None
    text = "No epoch has been validated."
    if best:
        text = (
            f"Best epoch: {best['epoch']} of {len(run.epochs)}, {best['metric']} {best['value']}. "
            "The same images chose the epoch, so its result is slightly optimistic."
        )
    text += (
        " Training metrics are measured on augmented images and may be worse than those of "
        "validation."
    )
    return Section("curves", "Training", [Text(text), Charts(charts)])


def _result(name: str, value: float, kinds: Mapping[str, str]) -> str:
    """Return a number of an epoch or of an evaluation as text.

    Args:
        name: of the number.
        value: the number.
        kinds: of columns, by their names without "val_"; of others the name and the value decide.
    """
    kind = kinds.get(name.removeprefix("val_"))
    if name in ("parameters", "images_per_second") or kind == "rate":
        return number(value)
    if kind is None and isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    if kind == "loss" or figures.is_loss(name):
        return f"{value:.4f}"
    if kind == "share" or (kind is None and isinstance(value, float) and 0 <= value <= 1):
        return percent(value, 2)
    return f"{value:,.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
