"""``convattn eval``: evaluate a checkpoint on labelled images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.data_settings import read_settings
from convattn.cli.output import make_folder, print_json
from convattn.cli.trained import (
    EVALUATE_OPTIONS,
    add_model,
    add_options,
    add_reading,
    check_exists,
    check_positive,
    given_options,
)
from convattn.names import check_choice, shown

if TYPE_CHECKING:
    from convattn.training.evaluation import TaskEvaluation

HELP = "evaluate a checkpoint"
DESCRIPTION = """Evaluate a checkpoint on labelled images: the metrics of its task, such as top-1
accuracy, average precision or mean IoU, results per class, and images per second."""
EPILOG = """examples:
  convattn eval runs/glnet_nano-pets-1 --data folder:new_pets
  convattn eval runs/upernet-streets-1 val_split=test
  convattn eval runs/mask_rcnn-coco-1 json=annotations/test.json images=test
  convattn eval runs/upernet-streets-1 --inference slide --flip

Without --data, the data is that of the training, and the images are its held-out images. With
other data that has no held-out part, they are all images. --split chooses the images.

settings:
  json, images, classes, ignored, train_split, val_split, root and download, as in training;
  val_split and json choose another part of the data of the training"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_model(parser)
    parser.add_argument("settings", nargs="*", metavar="setting", help="such as val_split=test")
    parser.add_argument("--data", help="such as folder:DIR, coco:DIR or masks:DIR [the training's]")
    parser.add_argument("--split", default="auto", help="auto, val, train or all [auto]")
    parser.add_argument("--workers", type=int, help="loading processes [chosen by the data]")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write evaluation.json and predictions.csv into it"
    )
    add_options(parser, EVALUATE_OPTIONS)
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _check(args)
    chosen = read_settings(args.settings, "val_split=test")
    if args.value_range is not None:
        chosen["value_range"] = args.value_range
    from convattn.tasks.table import evaluate, find_task, load_checkpoint
    from convattn.training.options import evaluate_options

    loaded = load_checkpoint(args.checkpoint)
    task = find_task(loaded.card.task)
    options = given_options(args, EVALUATE_OPTIONS, evaluate_options(task), task.name)
    found = evaluate(
        loaded,
        args.data,
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        options=options,
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
    method = getattr(found, "method", "")
    model = f"{method} with {found.model}" if method else found.model
    rows = [
        ("model", f"{shown(model)}, {found.parameters:,} parameters"),
        ("data", f"{shown(found.data)} ({shown(found.split)}), {found.images:,} images"),
        *found.headline(),
        ("speed", f"{found.images_per_second:,.0f} images/s"),
    ]
    if found.broken:
        rows.append(("skipped", f"{len(found.broken)} images that cannot be read"))
    rows += [("note", shown(note)) for note in found.notes]
    lines = [f"{label:9} {text}" for label, text in rows]
    table = found.table()
    return "\n".join([*lines, "", table] if table else lines)
