"""``convattn report``: write the report page of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from convattn.names import shown

HELP = "write the report page of a run"
DESCRIPTION = """Write report.html and curves.png of a run folder again.

Pictures of images and slot maps need the images that the run was trained on. Where these or the
checkpoint are missing, the page has the numbers only."""
EPILOG = """example:
  convattn report runs/glnet_nano-pets-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="a run folder")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    run_dir = Path(args.run_dir).expanduser()
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no run folder {shown(run_dir)}")
    if not any((run_dir / name).is_file() for name in ("metrics.csv", "config.yaml")):
        raise ValueError(f"{shown(run_dir)} is not a run folder: it has no config.yaml")
    from convattn.tasks.table import write_report

    try:
        page = write_report(run_dir)
    except OSError as error:
        raise OSError(f"cannot write into {shown(run_dir)}: {error.strerror}") from error
    print(shown(page))
    return 0
