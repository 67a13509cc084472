"""The report of a training run: one page that opens without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor, nn

from convattn.explain import figures, sections
from convattn.runs.files import write_text
from convattn.runs.results import Run, read_run

ImageSource = Callable[[int], Image.Image]
Preprocess = Callable[[Image.Image], Tensor]

# Longer lists of classes are cut to the hardest, the rest folded away.
_FULL_TABLE = 30
_HARDEST = 15


def write_report(
    run_dir: str | Path,
    *,
    model: nn.Module | None = None,
    image: ImageSource | None = None,
    preprocess: Preprocess | None = None,
    seconds: float | None = None,
    max_mistakes: int = 24,
    slot_images: int = 6,
) -> Path:
    """Write ``report.html`` and ``curves.png`` into a run folder.

    The page is one file without any outside reference. What the folder does not hold yet is
    left out: after an interrupted training the page shows the curves and the configuration.
    Accuracies in the files are shares from 0 to 1.

    Args:
        run_dir: folder with any of ``metrics.csv``, ``evaluation.json``, ``predictions.csv``,
            ``config.yaml``, ``environment.json`` and ``broken_images.txt`` (a path per line).
        model: the trained network, for slot maps; used in evaluation mode and left as it was.
        image: gives the picture of a validation image from the ``index`` column of
            ``predictions.csv``, as it is on disk; without it mistakes are listed in words.
        preprocess: turns such a picture into the network's input (C, H, W), the evaluation
            transform; slot maps need ``model``, ``image`` and ``preprocess``.
        seconds: how long the training took.
        max_mistakes: how many wrong examples to show, the most confident ones.
        slot_images: for how many images to show slot maps.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: ``run_dir`` is not a folder.
    """
    run = read_run(run_dir)
    if run.epochs:
        figures.save_png(figures.curves_figure(run.epochs), Path(run_dir) / "curves.png")
    slots = None
    if model is not None and image is not None and preprocess is not None:
        slots = sections.slot_section(run, model, image, preprocess, slot_images)
    page = _pages().get_template("report.html")
    path = Path(run_dir) / "report.html"
    text = page.render(
        **_summary(run, seconds),
        **_charts(run),
        classes=sections.class_rows(run),
        full_table=_FULL_TABLE,
        hardest=_HARDEST,
        pairs=sections.confused_pairs(run),
        mistakes=sections.mistakes(run, image, max_mistakes),
        slots=slots,
    )
    # A name that is not UTF-8 is shown with escapes, so that the page is UTF-8.
    write_text(path, text.encode("utf-8", "backslashreplace").decode())
    return path


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


def _summary(run: Run, seconds: float | None) -> dict[str, Any]:
    return {
        "run": run,
        "model_name": run.described("model"),
        "data_name": run.described("data"),
        "version": run.environment.get("convattn", ""),
        "headline": _headline(run, seconds),
        "starts": run.environment.get("starts", []),
        "best": sections.best_epoch(run),
        "notes": run.notes,
        "environment": sections.environment_rows(run),
    }


def _headline(run: Run, seconds: float | None) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, those that the run has."""
    formats: dict[str, tuple[str, Callable[[Any], str]]] = {
        "top1": ("top-1 accuracy", lambda share: _percent(share, 2)),
        "top5": ("top-5 accuracy", lambda share: _percent(share, 2)),
        "loss": ("validation loss", lambda loss: f"{loss:.4f}"),
        "images_per_second": ("images/s, evaluation", _number),
        "parameters": ("parameters", _number),
    }
    if len(run.class_names) <= 5:
        del formats["top5"]  # always right
    numbers = [
        (label, text(run.evaluation[key]))
        for key, (label, text) in formats.items()
        if key in run.evaluation
    ]
    best = sections.best_epoch(run)
    if best and not run.evaluation:
        numbers.append(("best validation accuracy so far", _percent(best["val_top1"], 2)))
    if seconds is not None:
        numbers.append(("training time", _duration(seconds)))
    return numbers


def _charts(run: Run) -> dict[str, Any]:
    curves = [
        (f"{name} by epoch", Markup(figures.to_svg(figures.curve_figure(name, run.epochs))))
        for name in figures.CURVES
        if run.epochs
    ]
    matrix = None
    if run.confusion:
        names = [run.class_name(label) for label in range(len(run.confusion))]
        matrix = Markup(figures.to_svg(figures.confusion_figure(run.confusion, names)))
    return {"curves": curves, "matrix": matrix}


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
