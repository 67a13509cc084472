"""``convattn doctor``: describe this machine, and check that the operators are correct on it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convattn.diagnosis import Diagnosis, Section

HELP = "describe this machine, and check the operators on it"
DESCRIPTION = """Show versions, the processor, kernels, devices and extras, and check the operators.

The output is meant for a bug report. The C kernels are compiled if that has not been done. Each
operator computes a small feature map, which is compared with its reference."""
EPILOG = """example:
  convattn doctor --json > machine.json

The exit status is 1 if an operator computes a wrong result, or if a required package is too old;
otherwise 0, even if optional packages are missing. The user's home folder is written as ~."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from convattn.diagnosis import diagnose

    found = diagnose()
    text = json.dumps(found._asdict(), indent=2) if args.json else _page(found)
    print(text)
    return 1 if found.faults else 0


def _page(found: Diagnosis) -> str:
    width = max(len(name) for section in found.sections.values() for name in section)
    parts = [_section(title, section, width) for title, section in found.sections.items()]
    parts += [f"{n}\n" + "\n".join(f"  {w}" for w in words) for n, words in _remarks(found)]
    return (
        "\n\n".join(parts)
        if found.faults or found.hints
        else "\n\n".join([*parts, "No problems found."])
    )


def _remarks(found: Diagnosis) -> list[tuple[str, list[str]]]:
    named = [("errors", found.faults), ("hints", found.hints)]
    return [(name, words) for name, words in named if words]


def _section(title: str, section: Section, width: int) -> str:
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in section.items())])
