"""``convattn data scenes``: write generated pictures with labelled objects in a common format."""

from __future__ import annotations

import argparse
from pathlib import Path

from convattn.cli.output import as_word, make_folder
from convattn.names import check_choice, shown

HELP = "generate pictures with labelled objects"
DESCRIPTION = """Write pictures of textured shapes, with boxes and masks, as a data set.

Shapes of eight classes lie over noise and over the photographs of scikit-learn and scikit-image;
they hide one another and cast shadows. Pictures held out lie over photographs that no training
picture has. With --easy, each picture has one to three large objects and no shapes without a class.
The same arguments give the same files on every machine."""
EPILOG = """examples:
  convattn data scenes --out scenes --format coco
  convattn data scenes --out scenes --format folder --count 2000 --size 256
  convattn data scenes --out scenes --easy --size 96

formats:
  coco      boxes and masks of objects, in a JSON file
  yolo      polygons of objects, in text files
  voc       boxes of objects in XML files, and a class for each pixel in PNG files
  ade20k    a class for each pixel, in PNG files; 0 is not labelled
  folder    a class for each pixel, in PNG files; 0 is the background
  classes   one object in each picture, in a folder for each class, with masks beside them"""
FORMATS = {
    "coco": "--task detection --recipe {recipe} --data coco:{folder}",
    "yolo": "--task detection --recipe {recipe} --data yolo:{folder}",
    "voc": "--task detection --recipe {recipe} --data voc:{folder}",
    "ade20k": "--task segmentation --recipe {recipe} --data ade20k:{folder}",
    "folder": "--task segmentation --recipe {recipe} --data masks:{folder}",
    "classes": "--data folder:{folder}/images",
}
MIN_SIZE, MAX_SIZE = 64, 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--format", default="coco", help=f"{', '.join(FORMATS)} [coco]")
    parser.add_argument("--count", metavar="N", default="400", help="training pictures [400]")
    parser.add_argument("--val", metavar="N", help="pictures held out [a quarter of --count]")
    parser.add_argument("--size", metavar="S", default="192", help="width and height [192]")
    parser.add_argument(
        "--seed", metavar="K", default="0", help="another seed gives other pictures [0]"
    )
    parser.add_argument("--easy", action="store_true", help="few and large objects in each picture")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.out:
        raise ValueError("say where to write: --out DIR")
    check_choice("--format", args.format, FORMATS)
    count = _whole("--count", args.count, 1, 10_000_000)
    val = max(1, count // 4) if args.val is None else _whole("--val", args.val, 1, 10_000_000)
    size = _whole("--size", args.size, MIN_SIZE, MAX_SIZE)
    seed = _whole("--seed", args.seed, 0, 2**63 - 1)
    if args.easy and args.format == "classes":
        raise ValueError("--easy is not for --format classes: its pictures have one large object")
    folder = Path(args.out).expanduser()
    _check_new(folder)
    make_folder("--out", str(folder))
    from convattn.data.scenes import write_scenes  # imports torch

    write_scenes(folder, args.format, count=count, val=val, size=size, seed=seed, easy=args.easy)
    words = FORMATS[args.format].format(
        recipe="scenes" if args.easy else "small", folder=as_word(folder)
    )
    print(
        f"{shown(folder)}: {count:,} training pictures and {val:,} held out"
        f"{', with few and large objects (--easy)' if args.easy else ''}\n\n"
        f"Next:\n  convattn train {words} img_size={size}"
    )
    return 0


def _whole(option: str, text: str, least: int, most: int) -> int:
    """Return the number that an option gives; raise `ValueError` if it is no number in range."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not least <= number <= most:
        raise ValueError(f"{option} {shown(text)}: give a whole number from {least:,} to {most:,}")
    return number


def _check_new(folder: Path) -> None:
    """Raise `FileExistsError` unless a folder is missing or empty, before torch is imported."""
    if folder.is_file():
        raise FileExistsError(f"cannot write into {shown(folder)}: this is a file")
    if folder.is_dir() and (entry := next(folder.iterdir(), None)):
        raise FileExistsError(
            f"cannot write into {shown(folder)}: the folder is not empty: it holds "
            f"{shown(entry.name)}; name a new folder"
        )
