"""The report of a training run: one page that opens without a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor, nn

from convattn.explain import figures, sections
from convattn.runs.files import write_text
from convattn.runs.metrics import Column, best_epoch
from convattn.runs.results import Run, read_run

ImageSource = Callable[[int], Image.Image]
Preprocess = Callable[[Image.Image], Tensor]

# A longer table of classes shows the hardest ones; the others are folded.
_FULL_TABLE = 30
_HARDEST = 15
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
    columns: Sequence[str] | None = None,
    metrics: Sequence[Column] = (),
    best: tuple[str, ...] = _BEST,
    model: nn.Module | None = None,
    image: ImageSource | None = None,
    preprocess: Preprocess | None = None,
    seconds: float | None = None,
    notes: Sequence[str] = (),
    max_mistakes: int = 24,
    slot_images: int = 6,
) -> Path:
    """Write ``report.html`` and ``curves.png`` into a run folder, each whole or not at all.

    The page is one file without references to other files. A section whose files are missing is
    left out: after an interrupted training, the page has the curves and the configuration. A
    section that cannot be drawn is a line in the page and no error. Accuracies in the files are
    shares from 0 to 1.

    Args:
        run_dir: folder with any of ``metrics.csv``, ``evaluation.json``, ``predictions.csv``,
            ``config.yaml``, ``environment.json`` and ``broken_images.txt`` (a path per line).
        columns: columns of ``metrics.csv`` to draw; by default losses, shares and the learning
            rate, see `convattn.explain.figures.panels`.
        metrics: the task's; they say how a number is written. Without, its name and value do.
        best: the rule of the best epoch, see `convattn.runs.metrics.score`.
        model: the trained network, for slot maps; it runs in evaluation mode and is left as it was.
        image: returns a validation image by the ``index`` column of ``predictions.csv``; without
            it, mistakes are listed in words.
        preprocess: turns such an image into the input of the network (C, H, W), as in evaluation;
            slot maps need ``model``, ``image`` and ``preprocess``.
        seconds: the duration of the training.
        notes: further lines at the top of the page.
        max_mistakes: the number of wrong examples, the most confident ones.
        slot_images: the number of images with slot maps.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: ``run_dir`` is not a folder.
        OSError: the page cannot be written.
    """
    run = read_run(run_dir)
    said = [*run.notes, *notes]
    content = {
        **_summary(run, seconds, metrics, best, said),
        **_curves(run, Path(run_dir), columns, said),
    }
    content |= _results(run, image, max_mistakes, said)
    content["slots"] = None
    if model is not None and image is not None and preprocess is not None:
        with _section("slot maps", said):
            content["slots"] = sections.slot_section(run, model, image, preprocess, slot_images)
    page = _pages().get_template("report.html").render(content, notes=said)
    path = Path(run_dir) / "report.html"
    # A file name that is not UTF-8 holds surrogates, which a page cannot hold.
    write_text(path, page.encode("utf-8", "backslashreplace").decode())
    return path


@contextlib.contextmanager
def _section(name: str, notes: list[str]) -> Iterator[None]:
    """Turn an error while a section is drawn into a line in the page."""
    try:
        yield
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
    pages.filters["percent"] = _percent
    pages.filters["number"] = _number
    return pages


def _summary(
    run: Run,
    seconds: float | None,
    metrics: Sequence[Column],
    rule: tuple[str, ...],
    notes: list[str],
) -> dict[str, Any]:
    kinds = {column.name.removeprefix("val_"): column.kind for column in metrics}
    content: dict[str, Any] = {
        "run": run,
        "model_name": run.described("model"),
        "data_name": run.described("data"),
        "version": run.environment.get("convattn", ""),
        "headline": [],
        "starts": run.environment.get("starts", []),
        "best": None,
        "environment": [],
    }
    with _section("best epoch", notes):
        content["best"] = _best(run, kinds, rule)
    with _section("results", notes):
        content["headline"] = _headline(run, kinds, seconds, content["best"], rule)
    with _section("environment", notes):
        content["environment"] = sections.environment_rows(run)
    return content


def _best(run: Run, kinds: Mapping[str, str], rule: tuple[str, ...]) -> dict[str, str] | None:
    """Return the best epoch of a run in words; None if no epoch has the metric of the rule."""
    row = best_epoch(run.epochs, rule)
    if row is None:
        return None
    name = rule[0].removeprefix("-")
    return {
        "epoch": _number(row["epoch"]),
        "metric": figures.column_title(name),
        "value": _result(name, row[name], kinds),
    }


def _headline(
    run: Run,
    kinds: Mapping[str, str],
    seconds: float | None,
    best: Any,
    rule: tuple[str, ...],
) -> list[tuple[str, str]]:
    """Return the names and texts of the numbers at the top of the page, the best metric first."""
    first = [name.removeprefix("-").removeprefix("val_") for name in rule]
    order = [*first, *(key for key in run.evaluation if key not in (*first, *_LAST)), *_LAST]
    left_out = (*_NOT_RESULTS, *(("top5",) if len(run.class_names) <= 5 else ()))  # always right
    numbers = [
        (_NUMBERS.get(key, figures.column_title(key)), _result(key, value, kinds))
        for key in dict.fromkeys(order)
        if isinstance(value := run.evaluation.get(key), int | float) and key not in left_out
    ]
    if best and not run.evaluation:
        numbers.append((f"best {best['metric']} so far", best["value"]))
    if seconds is not None:
        numbers.append(("training time", _duration(seconds)))
    return numbers


def _curves(
    run: Run, folder: Path, columns: Sequence[str] | None, notes: list[str]
) -> dict[str, Any]:
    curves = []
    with _section("curves", notes):
        charts = figures.panels(run.epochs, columns)
        if charts:
            figures.save_png(figures.curves_figure(run.epochs, columns), folder / "curves.png")
        for panel in charts:
            svg = Markup(figures.to_svg(figures.curve_figure(panel, run.epochs)))
            curves.append((f"{panel.title} by epoch", svg))
    return {"curves": curves}


def _results(
    run: Run, image: ImageSource | None, max_mistakes: int, notes: list[str]
) -> dict[str, Any]:
    """Return the results by class and by image."""
    content: dict[str, Any] = {"classes": [], "matrix": None, "pairs": [], "mistakes": []}
    content |= {"full_table": _FULL_TABLE, "hardest": _HARDEST, "max_rows": _MAX_ROWS}
    with _section("accuracy by class", notes):
        content["classes"] = sections.class_rows(run)
    with _section("confusion matrix", notes):
        if len(run.confusion):
            names = [run.class_name(label) for label in range(len(run.confusion))]
            content["pairs"] = sections.confused_pairs(run)
            content["matrix"] = Markup(
                figures.to_svg(figures.confusion_figure(run.confusion, names))
            )
    with _section("wrong examples", notes):
        content["mistakes"] = sections.mistakes(run, image, max_mistakes)
    missing = sum(mistake.picture is None for mistake in content["mistakes"])
    if image and missing:
        notes.append(
            f"{missing} of {len(content['mistakes'])} wrong examples have no picture: "
            "their images cannot be read now."
        )
    return content


def _result(name: str, value: float, kinds: Mapping[str, str]) -> str:
    """Return a number of an epoch or of an evaluation as text.

    Args:
        name: of the number.
        value: the number.
        kinds: of columns, by their names without "val_"; of others the name and the value decide.
    """
    kind = kinds.get(name.removeprefix("val_"))
    if name in ("parameters", "images_per_second") or kind == "rate":
        return _number(value)
    if kind == "loss" or figures.is_loss(name):
        return f"{value:.4f}"
    if kind == "share" or (kind is None and 0 <= value <= 1):
        return _percent(value, 2)
    return f"{value:,.4g}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
