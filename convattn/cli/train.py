"""``convattn train``: from images to a run folder with weights, metrics and a report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convattn.tasks.classification import TrainResult

HELP = "train a classifier"
DESCRIPTION = "Train a classifier on images, and write weights, metrics and a report page."
EPILOG = """example:
  convattn train --model glnet_nano --data folder:pets epochs=50 lr=1e-3

Settings are KEY=VALUE words: --settings lists them all. They win over the recipe, which wins over
the defaults. --recipes lists the recipes; a recipe is a YAML file of such settings, and the
config.yaml that a run leaves behind is one too. Ctrl-C stops a run so that --resume can go on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--model", help="as `convattn models` or timm lists it [glnet_nano]")
    parser.add_argument("--data", help="digits, folder:PATH or timm:NAME [digits]")
    parser.add_argument("--recipe", metavar="NAME|FILE.yaml", help="a set of settings")
    parser.add_argument("--name", help="folder of this run below runs/ [MODEL-DATA-NUMBER]")
    parser.add_argument(
        "--resume", metavar="RUN|CHECKPOINT", help="go on with a run that was stopped"
    )
    parser.add_argument(
        "--settings", action="store_true", dest="list_settings", help="list all settings"
    )
    parser.add_argument("--recipes", action="store_true", help="list the recipes")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="such as epochs=10")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from convattn.tasks.classification import (
        TrainConfig,
        list_recipes,
        load_config,
        resume,
        train,
    )
    from convattn.training.settings import describe, parse_overrides

    if args.list_settings:
        print(describe(TrainConfig))
        return 0
    if args.recipes:
        print("\n".join(list_recipes()))
        return 0
    given = {key: getattr(args, key) for key in ("model", "data", "name")}
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides.update(parse_overrides(args.settings, TrainConfig))
    if args.resume is None:
        result = train(load_config(args.recipe, overrides))
    elif args.recipe is None:
        result = resume(args.resume, overrides=overrides)
    else:
        raise ValueError("--resume goes on with the run's own settings: leave --recipe out")
    return _finish(result)


def _finish(result: TrainResult) -> int:
    """Print what was reached and the next commands."""
    found, run_dir = result.evaluation, result.run_dir
    if result.stopped:
        batches = f" and {result.batches_done} batches" if result.batches_done else ""
        print(
            f"\nStopped after {result.epochs_done} epochs{batches}; everything is saved. To resume:"
        )
        print(f"  convattn train --resume {run_dir}")
        return 130
    if result.had_finished:
        done = result.epochs_done
        print(
            f"{run_dir} has finished its {done} epochs; nothing was changed. To train longer:\n"
            f"  convattn train --resume {run_dir} epochs={done + 10}"
        )
        return 0
    if found is None:
        return 0
    print(
        f"\nbest      {found.best_line()}, epoch {result.best_epoch} of {result.epochs_done}\n"
        f"time      {result.seconds:.0f} s\n"
        f"weights   {run_dir / 'checkpoints' / 'best.safetensors'}"
    )
    if result.report is not None:
        print(f"report    {result.report}")
    print(f"\nNext:\n  convattn eval {run_dir}\n  convattn predict {run_dir} IMAGE_OR_FOLDER")
    return 0
