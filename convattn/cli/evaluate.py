"""``convattn eval``: how good a checkpoint is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.output import print_json
from convattn.cli.trained import add_model, add_reading
from convattn.names import shown

if TYPE_CHECKING:
    from convattn.tasks.classification import Evaluation

HELP = "evaluate a checkpoint"
DESCRIPTION = "Evaluate a checkpoint: top-1, top-5, loss, accuracy per class, images per second."
EPILOG = """example:
  convattn eval runs/glnet_nano-pets-1 --data folder:new_pets

Without --data: the held-out images of what it was trained on. Of a folder without train/ and val/
all images are taken, unless the model was trained on that folder; --split chooses."""
_SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_model(parser)
    parser.add_argument("--data", help="digits, folder:PATH or timm:NAME [the training's]")
    parser.add_argument("--split", default="auto", help="auto, val, train or all [auto]")
    parser.add_argument("--workers", type=int, help="loading processes [by data]")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write evaluation.json and predictions.csv there"
    )
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
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
    if args.output:
        found.write(Path(args.output))
    if args.json:
        print_json(found.to_dict())
    else:
        print(_table(found))
    return 0


def _table(found: Evaluation) -> str:
    lines = [
        f"model     {found.model}, {found.parameters:,} parameters",
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
    if len(rows) > _SHOWN:
        rows = sorted(rows, key=lambda row: row.accuracy or 0.0)[:_SHOWN]
        title = f"worst {_SHOWN} classes"
    names = [shown(row.name) for row in rows]
    width = max(map(len, [title, *names]))
    lines += ["", f"{title:{width}}  images  accuracy"]
    lines += [
        f"{name:{width}}  {row.images:6,}  {row.accuracy:8.1%}"
        for name, row in zip(names, rows, strict=True)
    ]
    return "\n".join(lines)
