"""``make demo``: train, evaluate and use a GLNet with three commands of the command line.

The demo trains the default model on the handwritten digits of scikit-learn, evaluates it on the
held-out scans, classifies some of these from PNG files, and prints the path of the report.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from pathlib import Path

from convattn.cli import main as convattn
from convattn.data import open_dataset

SCANS = 6


def show(command: str) -> None:
    """Print a command as a user would type it, and run it."""
    print(f"\n$ convattn {command}", flush=True)
    words = shlex.split(command)
    sys.argv = ["convattn", *words]  # the run folder stores the command
    status = convattn(words)
    if status:
        raise SystemExit(status)


def new_run(name: str) -> Path:
    """Return the first of the folders runs/NAME-1, runs/NAME-2, ... that does not exist."""
    folders = (Path("runs", f"{name}-{number}") for number in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())


def print_report(run_dir: Path) -> None:
    """Print where the report of a run is."""
    print("\nThe report, one HTML file that needs no internet connection:")
    print(f"  {run_dir.resolve() / 'report.html'}")


def write_scans(folder: Path) -> Path:
    """Write the first held-out scans as PNG files, with the digit in the file name."""
    folder.mkdir()
    val = open_dataset("digits").val
    for number in range(SCANS):
        val.image(number).save(folder / f"scan{number}_shows_{val.label(number)}.png")
    return folder


def main() -> None:
    """Run the demo."""
    run_dir = new_run("demo")
    show(f"train --name {run_dir.name}")
    show(f"eval {run_dir}")
    show(f"predict {run_dir} {write_scans(run_dir / 'scans')}")
    print_report(run_dir)


if __name__ == "__main__":
    main()
