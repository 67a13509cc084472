"""The report page of a run, with pictures of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from convattn.data import DataSource
from convattn.explain.page import Pictures
from convattn.explain.report import write_report
from convattn.names import shown
from convattn.runs.results import read_run
from convattn.training.evaluate import open_data
from convattn.training.predict import Predictions, ready
from convattn.training.task import Task
from convattn.training.trained import load_trained

_BATCH = 4  # images that are predicted at a time


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
    pictures = None
    lines = list(notes)
    run = read_run(run_dir)
    if task.report and run.evaluation:
        try:
            pictures = _pictures(task, run_dir, source)
        except Exception as error:  # the page is written without pictures
            lines.append(f"the page has no pictures of images: {error}")
    return write_report(
        run_dir,
        parts=task.report,
        pictures=pictures,
        metrics=task.columns(str(run.settings.get("method") or "")),
        numbers=task.report_numbers,
        best=task.best,
        seconds=seconds,
        notes=lines,
    )


def _pictures(task: type[Task[Any]], run_dir: Path, source: DataSource | None) -> Pictures:
    """Return the held-out images, and what the best model predicts for them."""
    best = load_trained(task, run_dir)
    if source is None:
        source = open_data(best, None, {"max_broken": 1.0}).source
    images, card = source.val, best.card
    # The numbers of images change when files are added to a folder; their paths do not.
    numbers = {images.path(number): number for number in range(len(images))}
    transform = task.eval_transform(card.preprocess)
    model = ready(best.model, torch.device("cpu"))

    def number(index: int, path: str) -> int:
        if "" in numbers:  # images without files
            return index
        if path not in numbers:
            raise FileNotFoundError(f"{shown(path)} is no held-out image now")
        return numbers[path]

    def predict(wanted: Sequence[int]) -> Sequence[Any]:
        found = [images.image(place) for place in wanted]
        return [
            *Predictions(
                task,
                model,
                card,
                torch.device("cpu"),
                found,
                batch_size=_BATCH,
                value_range=None,
                options={},
            )
        ]

    return Pictures(
        image=images.image,
        number=number,
        target=images.target,
        predict=predict,
        count=len(images),
        model=model,
        preprocess=lambda picture: transform(picture, None)[0],
    )
