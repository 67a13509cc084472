"""A terminal for tests."""

from __future__ import annotations

import os
import re
import select
from typing import TextIO

import pytest


class Terminal:
    """A pseudo-terminal of 120 columns; a program writes to ``stream``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> None:
        pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        self._screen, end = pty.openpty()
        self.stream: TextIO = os.fdopen(end, "w", encoding=encoding)

    def read(self) -> str:
        """Return what was written since the last call."""
        written = b""
        while select.select([self._screen], [], [], 0.1)[0]:
            written += os.read(self._screen, 1 << 16)
        return written.decode()

    def hang_up(self) -> None:
        """Close the end that a user sees."""
        os.close(self._screen)


def plain(drawn: str) -> str:
    """Return text without the escape sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
