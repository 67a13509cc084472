"""``convattn data``: commands for data sets on disk."""

from __future__ import annotations

import argparse

from convattn.cli import data_check, data_scenes, data_show
from convattn.cli.commands import Commands, add_commands

HELP = "make data sets, check them and show them"
DESCRIPTION = "Commands for data sets of objects and of segmentation masks."
EPILOG = """examples:
  convattn data check coco:DIR                         list all problems of a data set
  convattn data scenes --out scenes --format coco      generate pictures with objects
  convattn data show coco:scenes --out pages           draw images with their boxes and masks

See: convattn data COMMAND --help"""
SUBCOMMANDS: Commands = {
    "check": data_check,
    "scenes": data_scenes,
    "show": data_show,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    add_commands(parser, SUBCOMMANDS, prefix="data ")
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace) -> int:
    """Print the help, since no subcommand was given."""
    args.print_help()
    return 0
