"""``convattn eval``: evaluate a checkpoint on labelled images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.output import make_folder, print_json
from convattn.cli.trained import add_model, add_reading, check_exists, check_positive
from convattn.names import check_choice, shown

if TYPE_CHECKING:
    from convattn.training.evaluation import TaskEvaluation

HELP = "evaluate a checkpoint"
DESCRIPTION = """Evaluate a checkpoint on labelled images: the metrics of its task, such as top-1
accuracy, loss and accuracy per class, and images per second."""
EPILOG = """example:
  convattn eval runs/glnet_nano-pets-1 --data folder:new_pets

Without --data, the data is the held-out images of the training. With a folder that has no train/
and val/, it is all images of the folder, unless the model was trained on that folder. --split
chooses the images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_model(parser)
    parser.add_argument("--data", help="digits, folder:PATH or timm:NAME [as in training]")
    parser.add_argument("--split", default="auto", help="auto, val, train or all [auto]")
    parser.add_argument("--workers", type=int, help="loading processes [chosen by the data]")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write evaluation.json and predictions.csv into it"
    )
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _check(args)
    from convattn.tasks.table import evaluate

    chosen = {} if args.value_range is None else {"value_range": args.value_range}
    found = evaluate(
        args.checkpoint,
        args.data,
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        **chosen,
    )
    try:
        if args.output:
            found.write(Path(args.output))
    finally:  # the result is printed even if the disk is full
        if args.json:
            print_json(found.to_dict())
        else:
            print(_table(found))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check the arguments before the checkpoint is loaded."""
    check_exists(args.checkpoint)
    check_choice("split", args.split, ("auto", "train", "val", "all"))
    check_positive("--batch-size", args.batch_size)
    if args.output:
        make_folder("--output", args.output)


def _table(found: TaskEvaluation) -> str:
    rows = [
        ("model", f"{shown(found.model)}, {found.parameters:,} parameters"),
        ("data", f"{shown(found.data)} ({found.split}), {found.images:,} images"),
        *found.headline(),
        ("speed", f"{found.images_per_second:,.0f} images/s"),
    ]
    if found.broken:
        rows.append(("skipped", f"{len(found.broken)} images that cannot be read"))
    rows += [("note", shown(note)) for note in found.notes]
    lines = [f"{label:9} {text}" for label, text in rows]
    table = found.table()
    return "\n".join([*lines, "", table] if table else lines)
