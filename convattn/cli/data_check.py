"""``convattn data check``: list all problems of a data set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convattn.cli.data_settings import read_settings
from convattn.cli.output import print_json
from convattn.names import check_choice, counted, shown

if TYPE_CHECKING:
    from convattn.data.check import CheckedData

HELP = "list all problems of a data set"
DESCRIPTION = """Read all annotations and decode all images of a data set, and list the problems:
by their reasons, with the first examples of each. The exit status is 1 if there are problems.

Training leaves such images and objects out, up to the share max_broken; boxes and polygons that
reach beyond their image are cut at its edge if at least half of them lies in it."""
EPILOG = """examples:
  convattn data check coco:coco2017
  convattn data check coco:data json=train.json,val.json images=photos
  convattn data check voc:VOC2012 val_split=test
  convattn data check masks:streets classes=names.txt ignored=11
  convattn data check folder:pets --json

data:
  coco:DIR, yolo:FILE.yaml, yolo:DIR, voc:DIR, ade20k:DIR, masks:DIR, folder:DIR, timm:NAME

settings:
  json, images, classes, ignored, train_split, val_split, root and download, as in training"""
_TARGETS = ("classes", "boxes", "instances", "segments")
_EXAMPLES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", metavar="DATA", help="such as coco:DIR")
    parser.add_argument("settings", nargs="*", metavar="setting", help="such as images=photos")
    parser.add_argument(
        "--targets", help=f"{', '.join(_TARGETS)} [all that the files have]", metavar="KIND"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all problems")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.targets is not None:
        check_choice("targets", args.targets, _TARGETS)
    settings = read_settings(args.settings, "images=photos")
    from convattn.data.check import check_dataset  # imports torch

    found = check_dataset(args.data, targets=args.targets, **settings)
    if args.json:
        print_json(found.to_dict(), indent=2)
    else:
        print(_table(found))
    return 1 if found.problems else 0


def _table(found: CheckedData) -> str:
    number = counted(len(found.problems), "problem") if found.problems else "no problems"
    images, classes = counted(found.images, "image"), _classes(len(found.class_names))
    lines = [f"{shown(found.name)}: {images}, {classes}, {number}"]
    lines += [""] if found.problems else []
    kinds = found.by_kind
    width = max(map(len, kinds), default=0)
    for kind, problems in kinds.items():
        begin = f"{len(problems):5,}  {shown(kind):{width}}  "
        for problem in problems[:_EXAMPLES]:
            details = problem.reason.removeprefix(kind).removeprefix(": ")
            place = shown(problem.place) + (f": {shown(details)}" if details else "")
            lines.append(begin + place)
            begin = " " * len(begin)
    if found.notes:
        lines += ["", *(f"note: {shown(note)}" for note in found.notes)]
    return "\n".join(lines)


def _classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number:,} classes"
