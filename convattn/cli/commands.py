"""Tables of commands: a parser for each entry, and the message for a name that is no entry."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from types import ModuleType

Commands = Mapping[str, ModuleType]


def add_commands(parser: argparse.ArgumentParser, commands: Commands, prefix: str = "") -> None:
    """Add a parser for each command of a table.

    Args:
        parser: the parser that the commands belong to.
        commands: modules with HELP, DESCRIPTION, EPILOG, ``add_arguments`` and ``run``, by name; a
            module with a table SUBCOMMANDS adds its subcommands in ``add_arguments``.
        prefix: the command that the commands belong to, followed by a space.
    """
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in commands.items():
        command = parsers.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        options = [word for action in command._actions for word in action.option_strings]
        command.set_defaults(run=module.run, options=options, command=prefix + name)


def check_names(words: Sequence[str], commands: Commands) -> None:
    """Raise `ValueError` if the first words name no command, or no subcommand of a command."""
    before = ""
    for word in words:
        if word.startswith("-") or not commands:
            return
        if word not in commands:
            known = [before + name for name in commands]
            near = difflib.get_close_matches(before + word, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"unknown command {before + word!r}{hint} Known: {', '.join(known)}")
        before += f"{word} "
        commands = getattr(commands[word], "SUBCOMMANDS", {})
