"""The command ``convattn``: one file per subcommand, each of which parses, calls and prints.

The functions that run a subcommand import torch and the parts of this package that need it, so that
``--help``, ``--version`` and most mistakes in a command line are answered without these imports.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence

from convattn.cli import bench, doctor, evaluate, models, predict, train
from convattn.cli.output import escape_what_cannot_be_encoded
from convattn.machine import package_version
from convattn.names import shown
from convattn.requirements import extras_of
from convattn.version import __version__

_COMMANDS = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "models": models,
    "bench": bench,
    "doctor": doctor,
}
_EXAMPLES = """examples:
  convattn train                                 learn the handwritten digits, in a minute or two
  convattn train --data folder:pets epochs=50    learn the classes of a folder of images
  convattn eval runs/glnet_nano-digits-1         how good the result is
  convattn predict runs/glnet_nano-digits-1 scan.png
  convattn models 'glnet*'                       what there is to train
  convattn bench glnet_stl --against resnet50    how fast it is here
  convattn doctor                                what this machine has, for a report of a defect
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status: 0, 1 for a defect, 2 for a mistake in it.

    A mistake prints one message. ``--traceback`` or CONVATTN_DEBUG=1 shows where it was found.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--traceback" in words or os.environ.get("CONVATTN_DEBUG", "0") not in ("", "0")
    escape_what_cannot_be_encoded()
    try:
        return _run([word for word in words if word != "--traceback"])
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, ValueError, TypeError, OSError, RuntimeError) as error:
        if debug:
            raise
        # Names in a message may hold what a terminal would act on; its lines stay lines.
        lines = _explain(error, words).split("\n")
        print("convattn: " + "\n".join(map(shown, lines)), file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="convattn",
        description="Convolution and attention in one operator: ACmix, X-volution and GLMix.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    versions = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "timm"))
    parser.add_argument(
        "--version", action="version", version=f"convattn {__version__} ({versions})"
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code a mistake was found"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, options=_options(command))
    return parser


def _run(words: list[str]) -> int:
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    if not words[0].startswith("-") and words[0] not in _COMMANDS:
        near = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown command {words[0]!r}{hint} Known: {', '.join(_COMMANDS)}")
    args, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        raise ValueError(_unknown_option(unknown[0], args.options, args.command))
    if args.command == "train":
        args.settings += rest  # words that stand after an option
    elif rest:
        hint = ": other models stand after --against" if args.command == "bench" else ""
        raise ValueError(f"convattn {args.command} does not know what to do with {rest[0]!r}{hint}")
    return int(args.run(args))


def _explain(error: Exception, words: list[str]) -> str:
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    extras = extras_of(name.split(".")[0])
    if not extras:
        return str(error)
    extra = "train" if "train" in extras else extras[0]
    return (
        f"convattn {words[0]} needs {name}, which is not installed: pip install 'convattn[{extra}]'"
        "; `convattn doctor` shows what else is missing"
    )


def _options(command: argparse.ArgumentParser) -> list[str]:
    return [word for action in command._actions for word in action.option_strings]


def _unknown_option(word: str, known: list[str], command: str) -> str:
    name = word.split("=")[0]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    if command == "train" and not near:
        hint = f"; settings are written KEY=VALUE, such as {name.strip('-').replace('-', '_')}=5."
    return f"convattn {command} has no option {name}{hint} See: convattn {command} --help"
