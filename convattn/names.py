"""Names of classes, files and choices: one Unicode form, natural order, safe to print."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = "\u200c\u200d"  # not printable to Python, but part of Persian words and of emoji


def nfc(name: str) -> str:
    """Return ``name`` in Unicode's composed form; macOS may write "ö" as two characters."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts "img2" before "img10", in any Unicode form of the name."""
    parts = re.split(r"(\d+)", nfc(name).lower())
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p] + [(2, 0, name)]


def shown(text: object) -> str:
    r"""Return ``text`` that is safe to print: control characters are written as "\x1b"."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else ascii(c)[1:-1] for c in text)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` names in quotes, and the number of the others."""
    return first_of([f"'{shown(name)}'" for name in names], most)


def first_of(words: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` words, and the number of the others."""
    few = ", ".join(words[:most])
    return few if len(words) <= most else f"{few} and {len(words) - most} more"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest of the known names, or "." if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{shown(near[0])}'?" if near else "."


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise `ValueError` unless ``value`` is one of ``choices``; the message names the nearest."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {name} {value!r}{hint} Known: {', '.join(map(repr, choices))}")
