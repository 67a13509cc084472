"""``convattn predict``: classify images by a checkpoint."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from convattn.cli.output import print_json
from convattn.cli.trained import add_model, add_reading, check_exists, check_positive
from convattn.names import shown

if TYPE_CHECKING:
    from convattn.tasks.classification.predict import Predictions

HELP = "classify images"
DESCRIPTION = "Classify images, and all images in folders."
EPILOG = """example:
  convattn predict runs/glnet_nano-pets-1 cat.jpg holiday_photos --top-k 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_model(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="images to classify")
    parser.add_argument("--top-k", type=int, default=3, help="number of classes per image [3]")
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    check_exists(args.checkpoint)
    check_positive("--top-k", args.top_k)
    check_positive("--batch-size", args.batch_size)
    from convattn.tasks.classification import predict

    found = predict(
        args.checkpoint,
        args.images,
        top_k=args.top_k,
        batch_size=args.batch_size,
        device=args.device,
        value_range=args.value_range,
    )
    if args.json:
        print_json(asdict(found))
    else:
        print(_table(found))
    for file in found.broken:
        print(f"skipped {shown(file.path)}: {shown(file.reason)}", file=sys.stderr)
    for note in found.notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    return 0


def _table(found: Predictions) -> str:
    guesses = [
        [f"{shown(g.name)} {g.probability:.1%}" for g in image.guesses] for image in found.images
    ]
    rows = [["image", "best", *[""] * (len(guesses[0]) - 1)]]
    rows += [
        [shown(image.path), *cells] for image, cells in zip(found.images, guesses, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
