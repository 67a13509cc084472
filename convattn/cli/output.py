"""Printing on terminals and in pipes of any encoding."""

from __future__ import annotations

import io
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from convattn.names import shown


def escape_unencodable() -> None:
    r"""Let the standard streams write "\u732b" for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any, indent: int | None = None) -> None:
    """Print JSON, in ASCII if the encoding of the output lacks a character of a name."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    print(text)


def as_word(value: object) -> str:
    """Return ``value`` as a word of a command line that a user can copy."""
    return shown(shlex.quote(str(value)))


def make_folder(option: str, folder: str) -> None:
    """Make a folder for results before the work begins, and check that a file can be written.

    Raises:
        OSError: it cannot be made or written; the message names ``option``.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{option} {shown(folder)}: cannot write there ({error.strerror}); name another folder"
        ) from error
