"""``convattn eval``: evaluate a checkpoint on labelled images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.output import make_folder, print_json
from convattn.cli.trained import add_model, add_reading, check_exists, check_positive
from convattn.names import check_choice, shown

if TYPE_CHECKING:
    from convattn.tasks.classification import Evaluation

HELP = "evaluate a checkpoint"
DESCRIPTION = "Evaluate a checkpoint: top-1, top-5, loss, accuracy per class, images per second."
EPILOG = """example:
  convattn eval runs/glnet_nano-pets-1 --data folder:new_pets

Without --data, the data is the held-out images of the training. With a folder that has no train/
and val/, it is all images of the folder, unless the model was trained on that folder. --split
chooses the images."""
_MAX_ROWS = 40


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
    from convattn.tasks.classification import evaluate

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
    finally:  # a disk that is full does not cost the result
        if args.json:
            print_json(found.to_dict())
        else:
            print(_table(found))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise for every mistake that can be found before the checkpoint is loaded."""
    check_exists(args.checkpoint)
    check_choice("split", args.split, ("auto", "train", "val", "all"))
    check_positive("--batch-size", args.batch_size)
    if args.output:
        make_folder("--output", args.output)


def _table(found: Evaluation) -> str:
    lines = [
        f"model     {shown(found.model)}, {found.parameters:,} parameters",
        f"data      {shown(found.data)} ({found.split}), {found.images:,} images",
        f"top-1     {found.top1:.2%}",
        f"top-{min(5, found.num_classes)}     {found.top5:.2%}",
        f"loss      {found.loss:.4f}",
        f"speed     {found.images_per_second:,.0f} images/s",
    ]
    if found.broken:
        lines.append(f"skipped   {len(found.broken)} images that cannot be read")
    lines += [f"note      {shown(note)}" for note in found.notes]
    rows = [row for row in found.per_class if row.accuracy is not None]
    title = "class"
    if len(rows) > _MAX_ROWS:
        rows = sorted(rows, key=lambda row: row.accuracy or 0.0)[:_MAX_ROWS]
        title = f"worst {_MAX_ROWS} classes"
    names = [shown(row.name) for row in rows]
    width = max(map(len, [title, *names]))
    lines += ["", f"{title:{width}}  images  accuracy"]
    lines += [
        f"{name:{width}}  {row.images:6,}  {row.accuracy:8.1%}"
        for name, row in zip(names, rows, strict=True)
    ]
    return "\n".join(lines)
