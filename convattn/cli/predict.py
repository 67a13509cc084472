"""``convattn predict``: predict images with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convattn.cli.output import print_json
from convattn.cli.trained import (
    EVALUATE_OPTIONS,
    add_model,
    add_options,
    add_reading,
    check_exists,
    check_positive,
    given_options,
)
from convattn.names import shown
from convattn.progress import Progress

if TYPE_CHECKING:
    from convattn.cli.prediction_files import Row
    from convattn.predictor import Predictor

_Item = TypeVar("_Item")

HELP = "predict images"
DESCRIPTION = """Predict images, and all images in folders: classes and probabilities, objects with
boxes and masks, or the class of each pixel, as the model was trained."""
EPILOG = """--json prints {"images": [...], "broken": [...], "notes": [...]}. An entry of "images"
has "path", "task", "size" and
  classification  "guesses": [{"name", "probability"}]
  detection       "objects": [{"name", "label", "score", "box": [x1, y1, x2, y2], "mask"}], all
                  of them; table, drawings and masks have those with a score of at least --score, or
                  else 0.25
  segmentation    "classes": [{"name", "label", "share"}]; --masks writes the pixels
For detection, "results" has all objects in the form of COCO results: "image_id" is the number that
the name of the file is, or else a running number from 0, and "category_id" the class number from 1;
--ids takes both from an annotation file, so that they are right for it.

examples:
  convattn predict runs/glnet_nano-pets-1 cat.jpg holiday_photos --top-k 2
  convattn predict runs/retinanet-1 street.jpg --score 0.5 --output drawn
  convattn predict runs/retinanet-1 val2017 --json --ids annotations/instances_val2017.json
  convattn predict runs/upernet-1 photos --masks masks --flip"""
OPTIONS: Mapping[str, Mapping[str, Any]] = {  # those of the tasks' `predict`
    "top_k": {"type": int, "help": "classification: number of classes per image [3]"},
    **EVALUATE_OPTIONS,
}
_DEFAULTS = {"top_k": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_model(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="images to predict")
    add_options(parser, OPTIONS)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="write each image with its prediction drawn on it, and predictions.json, into it",
    )
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        help="write a PNG per image into it: its values are class numbers (segmentation), or 0 and "
        "the places of objects in the list from 1 (detection with masks)",
    )
    parser.add_argument(
        "--ids",
        metavar="FILE.json",
        help="detection: annotation file in COCO's form, whose ids the results of --json have",
    )
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    check_exists(args.checkpoint)
    check_positive("--top-k", args.top_k)
    check_positive("--batch-size", args.batch_size)
    from convattn.cli.prediction_files import CocoIds, Files, Row, as_json
    from convattn.predictor import Predictor
    from convattn.training.predict import split

    files = Files(args.output, args.masks)
    predictor = Predictor.load(args.checkpoint, device=args.device)
    if args.ids and predictor.card.task != "detection":
        raise ValueError(f"--ids is for detection; the task of this model is {predictor.card.task}")
    ids = CocoIds.read(Path(args.ids), predictor.class_names) if args.ids else None
    stream = predictor.stream(
        args.images,
        batch_size=args.batch_size,
        value_range=args.value_range,
        **_options(args, predictor),
    )

    def rows() -> Iterator[Row]:
        for prediction in _with_progress("predicting", stream, stream.total):
            files.add(prediction)
            yield Row.of(prediction)

    images, broken = split(rows())
    found = as_json(images, broken, stream.notes, ids)
    try:
        files.finish(found)
    finally:  # the result is printed even if the disk is full
        if args.json:
            print_json(found)
        else:
            print(_table(predictor.heading, images))
    for file in broken:
        print(f"skipped {shown(file.path)}: {shown(file.reason)}", file=sys.stderr)
    for note in found["notes"]:
        print(f"note: {shown(note)}", file=sys.stderr)
    return 0


def _options(args: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """Return the options of the task; raise `ValueError` for an option of another task."""
    given = given_options(args, OPTIONS, predictor.options, predictor.card.task)
    return {**{k: v for k, v in _DEFAULTS.items() if k in predictor.options}, **given}


def _with_progress(title: str, items: Iterable[_Item], total: int | None) -> Iterator[_Item]:
    with Progress(title, total) as progress:
        for item in items:
            yield item
            progress.advance()


def _table(heading: str, images: Sequence[Row]) -> str:
    rows = [["image", heading, *[""] * (len(images[0].cells) - 1)]]
    rows += [[shown(image.path), *image.cells] for image in images]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
