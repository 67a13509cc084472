"""``convattn train``: train on images and write a run folder with weights, metrics and report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convattn.cli.output import as_word
from convattn.cli.trained import check_exists
from convattn.names import shown

if TYPE_CHECKING:
    from convattn.tasks.classification import TrainResult

HELP = "train a classifier"
DESCRIPTION = "Train a classifier on images, and write weights, metrics and a report page."
EPILOG = """example:
  convattn train --model glnet_nano --data folder:pets epochs=50 lr=1e-3

Settings are KEY=VALUE words: --settings lists all of them. They replace those of the recipe, which
replace the defaults. --recipes lists the recipes; a recipe is a YAML file of settings, such as the
config.yaml of a run. Ctrl-C stops a run, and --resume continues it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--model", help="as `convattn models` or timm lists it [glnet_nano]")
    parser.add_argument("--data", help="digits, folder:PATH or timm:NAME [digits]")
    parser.add_argument("--recipe", metavar="NAME|FILE.yaml", help="a set of settings")
    parser.add_argument("--name", help="folder of this run in runs/ [MODEL-DATA-NUMBER]")
    parser.add_argument(
        "--resume", metavar="RUN|CHECKPOINT", help="continue a run that was stopped"
    )
    parser.add_argument(
        "--settings", action="store_true", dest="list_settings", help="list all settings"
    )
    parser.add_argument("--recipes", action="store_true", help="list the recipes")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="such as epochs=10")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from convattn.tasks.classification.config import describe
    from convattn.tasks.classification.settings import list_recipes, load_config, parse_overrides

    if args.list_settings:
        print(describe())
        return 0
    if args.recipes:
        print("\n".join(list_recipes()))
        return 0
    given = {key: getattr(args, key) for key in ("model", "data", "name")}
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides.update(parse_overrides(args.settings))
    if args.resume is None:
        config = load_config(args.recipe, overrides)
        from convattn.tasks.classification import train  # imports torch and Lightning

        return _finish(train(config), whole=True)
    if args.recipe is not None:
        raise ValueError("--resume continues with the settings of the run: leave --recipe out")
    check_exists(args.resume)
    from convattn.tasks.classification import resume

    return _finish(resume(args.resume, overrides=overrides), whole=False)


def _finish(result: TrainResult, *, whole: bool) -> int:
    """Write the report and print the result.

    Args:
        result: the run.
        whole: whether ``result.seconds`` is the time of the whole run, so that the report shows it.
    """
    from convattn.data import eval_transform
    from convattn.explain.report import write_report
    from convattn.tasks.classification import load_checkpoint

    found, run_dir = result.evaluation, result.run_dir
    if result.stopped:
        write_report(run_dir)
        batches = f" and {result.batches_done} batches" if result.batches_done else ""
        print(
            f"\nStopped after {result.epochs_done} epochs{batches}; everything is saved. "
            "Continue with\n"
            f"  convattn train --resume {as_word(run_dir)}"
        )
        return 130
    if found is None:
        return 0
    best = load_checkpoint(run_dir)
    page = write_report(
        run_dir,
        model=best.model,
        image=result.source.val.image,
        preprocess=eval_transform(best.card.preprocess),
        seconds=result.seconds if whole else None,
    )
    right = round(found.top1 * found.images)
    print(
        f"\nbest      {found.top1:.2%} top-1 ({right} of {found.images} held-out images), "
        f"epoch {result.best_epoch} of {result.epochs_done}\n"
        f"time      {result.seconds:.0f} s\n"
        f"weights   {shown(best.path)}\n"
        f"report    {shown(page)}"
    )
    run = as_word(run_dir)
    print(f"\nNext:\n  convattn eval {run}\n  convattn predict {run} IMAGE_OR_FOLDER")
    return 0
