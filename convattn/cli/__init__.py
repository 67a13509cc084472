"""The command ``convattn``: one file per subcommand, which parses, calls and prints.

The function that runs a subcommand imports torch, and the parts of this package that need it, after
it has checked its arguments: ``--help``, ``--version``, lists and most mistakes need no torch.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence

from convattn.cli import bench, data, doctor, evaluate, models, predict, report, train
from convattn.cli.chosen_task import chosen_task
from convattn.cli.commands import Commands, add_commands, check_names
from convattn.cli.output import escape_unencodable
from convattn.machine import package_version
from convattn.names import shown
from convattn.requirements import extras_of
from convattn.version import __version__

_COMMANDS: Commands = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "report": report,
    "data": data,
    "models": models,
    "bench": bench,
    "doctor": doctor,
}
_EXAMPLES = """examples:
  convattn train                                 train on the handwritten digits, 1 to 2 minutes
  convattn train --data folder:pets epochs=50    train on a folder of images
  convattn train --method faster_rcnn --data coco:pets --recipe small
                                                 train a detector
  convattn eval runs/glnet_nano-digits-1         evaluate the trained model
  convattn predict runs/glnet_nano-digits-1 scan.png
  convattn report runs/glnet_nano-digits-1       write the report page again
  convattn data scenes --out scenes --format coco
                                                 generate pictures with boxes and masks
  convattn models 'glnet*'                       list models to train
  convattn bench glnet_stl --against resnet50    measure speed on this machine
  convattn doctor                                describe this machine, for a bug report
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status.

    It is 0 after success, 1 if `convattn doctor` finds a defect, 2 after an error, and 130 after
    Ctrl-C. An error prints one message; ``--traceback`` or CONVATTN_DEBUG=1 shows its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--traceback" in words or os.environ.get("CONVATTN_DEBUG", "0") not in ("", "0")
    escape_unencodable()
    try:
        return _run([word for word in words if word != "--traceback"])
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, ValueError, TypeError, OSError, RuntimeError) as error:
        if debug:
            raise
        # A message may have lines; a name in it must not send an escape sequence to a terminal.
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
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    add_commands(parser, _COMMANDS)
    return parser


def _run(words: list[str]) -> int:
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    check_names(words, _COMMANDS)
    args, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        raise ValueError(_unknown_option(unknown[0], words, args))
    if "settings" in args:
        args.settings += rest  # words that stand after an option
    elif rest:
        hint = ": other models stand after --against" if args.command == "bench" else ""
        raise ValueError(f"convattn {args.command} takes no argument {rest[0]!r}{hint}")
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


def _unknown_option(word: str, words: list[str], args: argparse.Namespace) -> str:
    name, equals, value = word.partition("=")
    start = f"convattn {args.command} has no option {shown(name)}"
    if args.command == "train" and (setting := _setting(name, args)):
        following = words[words.index(word) + 1 :][:1]
        value = value if equals or not following or following[0][0] == "-" else following[0]
        return f"{start}: settings are written without dashes: {setting}={shown(value or 'VALUE')}"
    near = difflib.get_close_matches(name, args.options, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{start}{hint} See: convattn {args.command} --help"


def _setting(option: str, args: argparse.Namespace) -> str | None:
    """Return the setting of a training that a user wrote as an option; None if there is none."""
    from convattn.tasks.table import config_of

    name = option.strip("-").replace("-", "_")
    head, dot, inner = name.partition(".")
    near = difflib.get_close_matches(
        head, config_of(chosen_task(args)).model_fields, n=1, cutoff=0.8
    )
    return f"{near[0]}{dot}{shown(inner)}" if near else None
