"""Names of classes and files: in one Unicode form, in natural order, and safe to print."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = "\u200c\u200d"  # not printable to Python, but part of Persian words and of emoji


def nfc(name: str) -> str:
    """Return ``name`` in Unicode's composed form: macOS may write "ö" as two characters."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "img2" before "img10", whatever the Unicode form of the name."""
    parts = re.split(r"(\d+)", nfc(name).lower())
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p] + [(2, 0, name)]


def shown(text: object) -> str:
    r"""Return ``text`` for a terminal: line breaks, escape sequences and the like become "\x1b"."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else ascii(c)[1:-1] for c in text)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` names in quotes, and how many there are more."""
    return first_of([f"'{shown(name)}'" for name in names], most)


def first_of(words: Sequence[str], most: int = 10) -> str:
    """Return the first ``most`` words, and how many there are more."""
    few = ", ".join(words[:most])
    return few if len(words) <= most else f"{few} and {len(words) - most} more"


def counted(number: int, noun: str) -> str:
    """Return such as "1 image" and "2 images"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest of the known names, "." if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{shown(near[0])}'?" if near else "."
