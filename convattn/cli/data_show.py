"""``convattn data show``: draw images of a data set with their targets on contact sheets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.trained import check_positive
from convattn.names import check_choice, counted, did_you_mean, shown

if TYPE_CHECKING:
    from convattn.cli.data_pages import Shown
    from convattn.data import DataSource, ImageSet, Problem
    from convattn.training.config import RunConfig

HELP = "draw images with their boxes and masks on contact sheets"
DESCRIPTION = """Write pages (PNG) of images with their classes, boxes or masks drawn on them, and
print how often each class occurs. Wrong labels are visible on the pages.

Boxes of crowds, and of objects that count as neither right nor wrong, are dashed. Pixels that have
no class are dark."""
EPILOG = """examples:
  convattn data show coco:coco2017 --out pages
  convattn data show coco:coco2017 --out pages --class toaster --count 100
  convattn data show ade20k:ADEChallengeData2016 --out pages --split val
  convattn data show coco:coco2017 --out pages --augmented --recipe coco_1x --method mask_rcnn
  convattn data show coco:data --out pages --problems json=train.json images=photos

Settings are KEY=VALUE words, as in training."""
TARGETS = ("instances", "boxes", "segments", "classes")  # the first that the data has is shown
TASKS = {
    "instances": "detection",
    "boxes": "detection",
    "segments": "segmentation",
    "classes": "classification",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", metavar="DATA", help="such as coco:DIR, as in training")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="such as images=photos")
    parser.add_argument("--out", metavar="DIR", help="folder for the pages, new or empty")
    parser.add_argument("--split", default="train", help="train or val [train]")
    parser.add_argument("--count", type=int, default=48, metavar="N", help="number of images [48]")
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME", help="only images with this class"
    )
    parser.add_argument(
        "--targets", metavar="KIND", help=f"{', '.join(TARGETS)} [the first that the data has]"
    )
    parser.add_argument(
        "--augmented", action="store_true", help="as training sees them, with its random changes"
    )
    parser.add_argument("--method", help="method of the training, with --augmented")
    parser.add_argument("--recipe", metavar="NAME|FILE.yaml", help="recipe of the training")
    parser.add_argument(
        "--problems",
        action="store_true",
        help="only images that `convattn data check` lists, with the problems",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.out:
        raise ValueError("say where to write: --out DIR")
    check_choice("--split", args.split, ("train", "val"))
    if args.targets is not None:
        check_choice("--targets", args.targets, TARGETS)
    check_positive("--count", args.count)
    if args.problems and (args.augmented or args.class_name):
        other = "--augmented" if args.augmented else "--class"
        raise ValueError(f"--problems shows the files as they are: leave {other} out")
    folder = Path(args.out).expanduser()
    from convattn.cli import data_pages as pages

    pages.check_folder("--out", folder)
    config, source, targets = _open(args)
    images = source.train if args.split == "train" else source.val
    if args.problems:
        from convattn.cli.data_problems import problem_images

        found = problem_images(source, _problems(config, targets), args.count)
        written, number = pages.write_pages(folder, *found, source.class_names)
    else:
        chosen = pages.chosen(images, _label(args.class_name, source), args.count)
        read = _augmented(config, source, images) if args.augmented else pages.plain(images)
        counts, note = pages.count_classes(images, source.class_names)
        print(f"{counts.table()}\n\n{note}")
        written, number = pages.write_pages(folder, chosen, read, source.class_names)
    for sentence in source.notes:
        print(f"note: {shown(sentence)}")
    what = "images with problems" if args.problems else "images"
    if not number:
        print(f"no {what} to show" + (f" of class {args.class_name}" if args.class_name else ""))
        return 0
    print(f"{counted(number, 'image')} on {counted(len(written), 'page')}: {shown(written[0])}")
    return 0


def _open(args: argparse.Namespace) -> tuple[RunConfig, DataSource, str]:
    """Return the settings and the data, with the first targets that the data has."""
    from convattn.data import offered_targets, open_dataset
    from convattn.training.config import data_options

    offered = [kind for kind in TARGETS if kind in offered_targets(args.data)]
    errors: list[Exception] = []
    for targets in [args.targets] if args.targets else offered or ["classes"]:
        try:
            config = _config(args, targets)
            options = {**data_options(config), "targets": targets, "max_broken": 1.0}
            return config, open_dataset(config.data, **options), targets
        except (ValueError, FileNotFoundError) as error:
            errors.append(error)
    raise errors[0]


def _problems(config: RunConfig, targets: str) -> Sequence[Problem]:
    """Return what `convattn data check` lists for these targets."""
    from convattn.data.check import check_dataset
    from convattn.training.config import data_options

    options = data_options(config)
    del options["max_broken"]  # all problems are listed
    return check_dataset(config.data, **{**options, "targets": targets}).problems


def _config(args: argparse.Namespace, targets: str) -> RunConfig:
    """Return the settings of a training with these targets."""
    from convattn.tasks.table import config_of, load_config, methods_of, task_of_method
    from convattn.training.settings import parse_overrides

    task = task_of_method(args.method) if args.method else TASKS[targets]
    # The pages need no weights, which recipes ask for.
    given = {"data": args.data, "from_scratch": True}
    given |= parse_overrides(args.settings, config_of(task))
    methods = [args.method] if args.method else [*methods_of(task)]
    settings = [{**given, "method": method} for method in methods] or [given]
    for values in settings:
        config = load_config(task, args.recipe, values)
        if config.targets == targets:
            return config
    raise ValueError(
        f"{args.method or task} does not learn from {targets}: choose another --method or --targets"
    )


def _label(name: str | None, source: DataSource) -> int | None:
    """Return the number of a class, None for no name."""
    if name is None:
        return None
    if name not in source.class_names:
        known = ", ".join(map(shown, source.class_names[:20]))
        raise ValueError(
            f"the data has no class {shown(name)!r}{did_you_mean(name, source.class_names)} "
            f"Known: {known}{', ...' if len(source.class_names) > 20 else ''}"
        )
    return source.class_names.index(name)


def _augmented(config: RunConfig, source: DataSource, images: ImageSet) -> Callable[[int], Shown]:
    """Return a function that returns an image and its target as training sees them."""
    from convattn.cli import data_pages as pages
    from convattn.tasks.table import find_task

    task = find_task(config.task)(config, source)
    preprocess = task.build().card.preprocess
    return pages.augmented(images, task.train_transform(preprocess), preprocess)
