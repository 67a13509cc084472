"""``convattn train``: train on images and write a run folder with weights, metrics and report."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
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
config.yaml of a run.

Ctrl-C, SIGTERM and SIGHUP stop a run after the update at hand; --resume continues it to the same
result. The exit status is 0 after success, 2 after an error, and 128 plus the number of the signal
after a stop, as shells count it: 130 for Ctrl-C, 143 for SIGTERM. In a SLURM job SIGUSR1 stops the
run and queues the job again (sbatch --signal=SIGUSR1@90 --requeue); with name=NAME the job then
continues its run."""


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
    from convattn.tasks.classification.config import TrainConfig
    from convattn.tasks.classification.settings import list_recipes, load_config
    from convattn.training.settings import describe, parse_overrides

    if args.list_settings or args.recipes:
        _check_alone(args)
        print(describe(TrainConfig) if args.list_settings else "\n".join(list_recipes()))
        return 0
    given = {key: getattr(args, key) for key in ("model", "data", "name")}
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides.update(parse_overrides(args.settings, TrainConfig))
    if args.resume is None:
        config = load_config(args.recipe, overrides)
        from convattn.tasks.table import train  # imports torch and Lightning

        return _finish(train(config))
    if args.recipe is not None:
        raise ValueError("--resume continues with the settings of the run: leave --recipe out")
    check_exists(args.resume)
    from convattn.tasks.table import resume

    others = [word for word in args.settings if not word.startswith("epochs=")]
    return _finish(resume(args.resume, overrides=overrides), [args.resume, *others])


def _check_alone(args: argparse.Namespace) -> None:
    """Raise `ValueError` where a list is printed and further words would have no effect."""
    option = "--settings" if args.list_settings else "--recipes"
    further = [
        f"--{key}" for key in ("model", "data", "recipe", "name", "resume") if vars(args)[key]
    ]
    further += ["--recipes"] if args.list_settings and args.recipes else []
    if further := [*further, *args.settings]:
        raise ValueError(f"{option} only prints a list: leave {shown(further[0])} out")


def _finish(result: TrainResult, resumed: Sequence[str] = ()) -> int:
    """Print what was reached and the next commands.

    Args:
        result: what the training returned.
        resumed: the run or checkpoint of ``--resume`` and the settings, as the user wrote them,
            without ``epochs``.
    """
    if not result.is_first:  # of several processes; a status that is not 0 would end the others
        return 0
    found, run = result.evaluation, as_word(result.run_dir)
    if result.stopped:
        batches = f" and {result.batches_done} batches" if result.batches_done else ""
        print(
            f"\nStopped after {result.epochs_done} epochs{batches}, which are saved. "
            "Continue with\n"
            f"  convattn train --resume {run}"
        )
        return 128 + (result.signal or signal.SIGINT)
    if result.had_finished:
        done = result.epochs_done
        print(
            f"{shown(result.run_dir)} has finished its {done} epochs; nothing was changed. "
            "Train longer with\n"
            f"  convattn train --resume {' '.join(map(as_word, resumed))} epochs={done + 10}"
        )
        return 0
    if found is None:
        return 0
    weights = result.run_dir / "checkpoints" / "best.safetensors"
    print(
        f"\nbest      {found.best_line()}, epoch {result.best_epoch} of {result.epochs_done}\n"
        f"time      {result.seconds:.0f} s\n"
        f"weights   {shown(weights)}"
    )
    if result.report is not None:
        print(f"report    {shown(result.report)}")
    print(f"\nNext:\n  convattn eval {run}\n  convattn predict {run} IMAGE_OR_FOLDER")
    return 0
