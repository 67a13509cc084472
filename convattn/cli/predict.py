"""``convattn predict``: predict images with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convattn.cli.output import make_folder, print_json
from convattn.cli.trained import add_model, add_reading, check_exists, check_positive
from convattn.names import shown
from convattn.progress import Progress

if TYPE_CHECKING:
    from convattn.runs.predictions import Prediction

_FILE = "predictions.json"
_Item = TypeVar("_Item")

HELP = "predict images"
DESCRIPTION = "Predict images, and all images in folders: their classes and probabilities."
EPILOG = """example:
  convattn predict runs/glnet_nano-pets-1 cat.jpg holiday_photos --top-k 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_model(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="images to predict")
    parser.add_argument("--top-k", type=int, default=3, help="number of classes per image [3]")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="write each image with its prediction drawn on it, and predictions.json, into it",
    )
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    check_exists(args.checkpoint)
    check_positive("--top-k", args.top_k)
    check_positive("--batch-size", args.batch_size)
    if args.output:
        _check_output(Path(args.output))
    from convattn.predictor import Predictor
    from convattn.training.predict import split

    predictor = Predictor.load(args.checkpoint, device=args.device)
    stream = predictor.stream(
        args.images, batch_size=args.batch_size, value_range=args.value_range, top_k=args.top_k
    )
    images, broken = split(_with_progress("predicting", stream, stream.total))
    found = {
        "images": [prediction.to_dict() for prediction in images],
        "broken": [{"path": file.path, "reason": file.reason} for file in broken],
        "notes": stream.notes,
    }
    try:
        if args.output:
            _write(Path(args.output), images, found)
    finally:  # the result is printed even if the disk is full
        if args.json:
            print_json(found)
        else:
            print(_table(images))
    for file in broken:
        print(f"skipped {shown(file.path)}: {shown(file.reason)}", file=sys.stderr)
    for note in stream.notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    return 0


def _check_output(folder: Path) -> None:
    """Create the output folder; raise `ValueError` if it has other files."""
    make_folder("--output", str(folder))
    if not (folder / _FILE).is_file() and any(folder.iterdir()):
        raise ValueError(
            f"--output {shown(folder)} holds other files, which could be overwritten: name a new "
            f"or an empty folder, or one with the {_FILE} of an earlier prediction"
        )


def _with_progress(title: str, items: Iterable[_Item], total: int | None) -> Iterator[_Item]:
    with Progress(title, total) as progress:
        for item in items:
            yield item
            progress.advance()


def _write(folder: Path, images: Sequence[Prediction], found: dict[str, Any]) -> None:
    """Write the JSON, then a PNG per image, with a number where two have the same name."""
    from convattn.runs.files import replacing, write_json

    write_json(folder / _FILE, found)
    counts = Counter[str]()
    for prediction in _with_progress("drawing", images, len(images)):
        stem = Path(prediction.path).stem
        while counts[stem]:
            counts[stem] += 1
            stem = f"{stem}-{counts[stem]}"
        counts[stem] += 1
        with replacing(folder / f"{stem}.png") as temporary:
            prediction.draw().save(temporary, "PNG")


def _table(images: Sequence[Prediction]) -> str:
    cells = [prediction.cells() for prediction in images]
    rows = [["image", images[0].heading, *[""] * (len(cells[0]) - 1)]]
    rows += [[shown(image.path), *row] for image, row in zip(images, cells, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
