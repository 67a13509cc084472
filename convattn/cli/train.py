"""``convattn train``: train on images and write a run folder with weights, metrics and report."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convattn.cli.chosen_task import chosen_method, chosen_task
from convattn.cli.output import as_word
from convattn.cli.trained import check_exists
from convattn.names import shown
from convattn.tasks import table

if TYPE_CHECKING:
    from convattn.tasks.classification import TrainResult

HELP = "train a classifier, a detector or a segmenter"
DESCRIPTION = "Train a model on images, and write weights, metrics and a report page."
EPILOG = """examples:
  convattn train --model glnet_nano --data folder:pets epochs=50 lr=1e-3
  convattn train --method faster_rcnn --model glnet_nano --data voc:cells --recipe small

Settings are KEY=VALUE words: --settings lists all of them. They replace those of the recipe, which
replace the defaults. --recipes lists the recipes; a recipe is a YAML file of settings, such as the
config.yaml of a run. Each task has its own settings and recipes: `convattn train --settings --task
detection` lists those of detection.

Ctrl-C, SIGTERM and SIGHUP stop a run after the update at hand; --resume continues it to the same
result. The exit status is 0 after success, 2 after an error, and 128 plus the number of the signal
after a stop, as shells count it: 130 for Ctrl-C, 143 for SIGTERM. In a SLURM job SIGUSR1 stops the
run and queues the job again (sbatch --signal=SIGUSR1@90 --requeue); with name=NAME the job then
continues its run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--task",
        help=f"{', '.join(table.list_tasks())} [that of the method, or else classification]",
    )
    parser.add_argument("--method", help=f"{_methods()} [the first of the task]")
    parser.add_argument("--model", help="as `convattn models` or timm lists it [glnet_nano]")
    parser.add_argument(
        "--data",
        help="digits, folder:PATH or timm:NAME; of detection coco:PATH, voc:PATH or yolo:PATH; of "
        "segmentation voc:PATH, ade20k:PATH or masks:PATH [digits]",
    )
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
    if args.list_settings or args.recipes:
        return _list(args)
    if args.resume is not None:
        return _resume(args)
    task, method = chosen_task(args), chosen_method(args)
    given = {"method": method} if method else {}
    config = table.load_config(task, args.recipe, {**given, **_overrides(args, task)})
    return _finish(table.train(config))  # imports torch and Lightning


def _resume(args: argparse.Namespace) -> int:
    """Continue a run."""
    for option in ("recipe", "task", "method"):
        if vars(args)[option] is not None:
            raise ValueError(
                f"--resume continues with the settings of the run: leave --{option} out"
            )
    check_exists(args.resume)
    from convattn.training.start import task_of

    overrides = _overrides(args, task_of(args.resume))
    others = [word for word in args.settings if not word.startswith("epochs=")]
    return _finish(table.resume(args.resume, overrides=overrides), [args.resume, *others])


def _overrides(args: argparse.Namespace, task: str) -> dict[str, Any]:
    """Return the settings that the user gave, as options or as words."""
    from convattn.training.settings import parse_overrides

    given = {key: getattr(args, key) for key in ("model", "data", "name")}
    overrides = {key: value for key, value in given.items() if value is not None}
    return {**overrides, **parse_overrides(args.settings, table.config_of(task))}


def _list(args: argparse.Namespace) -> int:
    """Print the settings or the recipes of a task."""
    from convattn.training.settings import describe

    _check_alone(args)
    task = chosen_task(args)
    if args.list_settings:
        print(describe(table.config_of(task)))
    else:
        print("\n".join(table.list_recipes(task)))
    return 0


def _methods() -> str:
    """Return the methods of each task that has some, as text."""
    names = {task: ", ".join(table.methods_of(task)) for task in table.list_tasks()}
    return "; ".join(f"{task}: {methods}" for task, methods in names.items() if methods)


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
        print(_had_finished(result, resumed))
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


def _had_finished(result: TrainResult, resumed: Sequence[str]) -> str:
    """Return how to train a finished run longer."""
    from convattn.runs.folder import RunFolder

    done, run = result.epochs_done, shown(result.run_dir)
    if steps := RunFolder(result.run_dir).read_config().get("steps"):
        return (
            f"{run} has finished its {steps} updates; nothing was changed. A new run starts from "
            f"its weights with init={as_word(result.run_dir)}"
        )
    return (
        f"{run} has finished its {done} epochs; nothing was changed. Train longer with\n"
        f"  convattn train --resume {' '.join(map(as_word, resumed))} epochs={done + 10}"
    )
