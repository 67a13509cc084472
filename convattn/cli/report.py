"""``convattn report``: write the report page of a run again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from convattn.names import shown

HELP = "write the report page of a run"
DESCRIPTION = """Write report.html and curves.png of a run folder again.

Pictures of images and slot maps need the images that the run was trained on. Where these or the
checkpoint are missing, the page has the numbers only."""
EPILOG = """example:
  convattn report runs/glnet_nano-pets-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="a run folder")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    run_dir = Path(args.run_dir).expanduser()
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no run folder {shown(run_dir)}")
    if not any((run_dir / name).is_file() for name in ("metrics.csv", "config.yaml")):
        raise ValueError(f"{shown(run_dir)} is not a run folder: it has no config.yaml")
    from convattn.explain.report import write_report

    try:
        pictures, notes = _pictures(run_dir), []
    except Exception as error:  # the page is written without them, whatever is missing
        pictures, notes = {}, [f"the page has no pictures of images: {error}"]
    for note in notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    try:
        page = write_report(run_dir, **pictures, notes=notes)
    except OSError as error:
        raise OSError(f"cannot write into {shown(run_dir)}: {error.strerror}") from error
    print(shown(page))
    return 0


def _pictures(run_dir: Path) -> dict[str, Any]:
    """Return the model, its preprocessing and the held-out images, as `write_report` takes them."""
    from convattn.data import eval_transform
    from convattn.runs.results import read_run
    from convattn.tasks.classification import load_checkpoint
    from convattn.tasks.classification.trained_data import open_for

    best = load_checkpoint(run_dir)
    options = {**best.card.data_options, "value_range": None, "max_broken": 1.0}
    images = open_for(best.card, best.card.data, **options).val
    # The numbers of images change when files are added to a folder; their paths do not.
    numbers = {images.path(number): number for number in range(len(images))}
    now = {
        p.index: numbers[p.path] for p in read_run(run_dir).predictions or [] if p.path in numbers
    }
    return {
        "model": best.model,
        "image": lambda index: images.image(index if "" in numbers else now[index]),
        "preprocess": eval_transform(best.card.preprocess),
    }
