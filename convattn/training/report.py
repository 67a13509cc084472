"""The report page of a run, with pictures of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from convattn.data import DataSource
from convattn.explain.report import write_report
from convattn.runs.results import read_run
from convattn.training.evaluate import open_data
from convattn.training.task import Task
from convattn.training.trained import load_trained


def write_run_report(
    task: type[Task[Any]],
    run_dir: Path,
    *,
    source: DataSource | None = None,
    seconds: float | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` and ``curves.png`` of a run.

    Where the checkpoint or the images are missing, the page has the numbers, and a line with the
    reason.

    Args:
        task: the task of the run.
        run_dir: the folder of the run.
        source: an open data set; by default the data of the run is opened.
        seconds: the duration of the training.
        notes: further lines at the top of the page.

    Returns:
        The path of ``report.html``.

    Raises:
        OSError: the page cannot be written.
    """
    pictures: dict[str, Any] = {}
    lines = list(notes)
    run = read_run(run_dir)
    if run.predictions:
        try:
            pictures = _pictures(task, run_dir, source)
        except Exception as error:  # the page is written without pictures
            lines.append(f"the page has no pictures of images: {error}")
    return write_report(
        run_dir,
        metrics=task.columns(str(run.settings.get("method") or "")),
        best=task.best,
        seconds=seconds,
        notes=lines,
        **pictures,
    )


def _pictures(task: type[Task[Any]], run_dir: Path, source: DataSource | None) -> dict[str, Any]:
    """Return the arguments of `write_report`: model, preprocessing and held-out images."""
    best = load_trained(task, run_dir)
    if source is None:
        source, _ = open_data(best, None, {"max_broken": 1.0})
    images = source.val
    # The numbers of images change when files are added to a folder; their paths do not.
    numbers = {images.path(number): number for number in range(len(images))}
    predictions = read_run(run_dir).predictions or []
    now = {p.index: numbers[p.path] for p in predictions if p.path in numbers}
    transform = task.eval_transform(best.card.preprocess)

    def image(index: int) -> Image.Image:
        return images.image(index if "" in numbers else now[index])

    return {
        "model": best.model,
        "image": image,
        "preprocess": lambda picture: transform(picture, None)[0],
    }
