"""What the commands print, on terminals and in pipes of any encoding."""

from __future__ import annotations

import io
import json
import sys
from typing import Any


def escape_what_cannot_be_encoded() -> None:
    r"""Let the standard streams write "\u732b" for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print JSON, in ASCII where the encoding of the output or a name allows nothing else."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)
