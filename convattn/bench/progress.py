"""What a benchmark shows while it runs: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


class Progress:
    """Show nothing; the base of those that do."""

    def group(self, name: str, number: int, total: int) -> None:
        """Begin a group of computations."""

    def say(self, text: str) -> None:
        """Tell what is going on."""

    def round(self, done: int, most: int) -> None:
        """Tell how many rounds are done, of at most so many."""

    def warn(self, text: str) -> None:
        """Tell of something that went wrong."""

    def done(self) -> None:
        """End the group."""

    def close(self) -> None:
        """Take away what is shown."""


quiet = Progress()


class Lines(Progress):
    """A line per group, when it is done: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._head, self._rounds, self._start = "", 0, 0.0

    def group(self, name: str, number: int, total: int) -> None:
        """Remember it."""
        self._head, self._rounds, self._start = f"[{number}/{total}] {name}", 0, time.monotonic()

    def round(self, done: int, most: int) -> None:
        """Remember it."""
        self._rounds = done

    def warn(self, text: str) -> None:
        """Print it."""
        print(f"{self._head}: {text}", file=self._stream, flush=True)

    def done(self) -> None:
        """Print the line."""
        took = time.monotonic() - self._start
        text = f"{self._head}: {self._rounds} rounds, {took:.0f} s"
        print(text, file=self._stream, flush=True)


class Bar(Lines):
    """The same lines, and below them a bar with the group that is running."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        super().__init__(console.file)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=None, state="")

    def group(self, name: str, number: int, total: int) -> None:
        """Start the bar anew."""
        super().group(name, number, total)
        self._bar.reset(self._task, total=None, description=self._head, state="")

    def say(self, text: str) -> None:
        """Write it beside the bar."""
        self._bar.update(self._task, state=text)

    def round(self, done: int, most: int) -> None:
        """Move the bar."""
        super().round(done, most)
        self._bar.update(self._task, completed=done, total=most, state=f"round {done}")

    def warn(self, text: str) -> None:
        """Print it above the bar."""
        self._bar.console.print(f"{self._head}: {text}", markup=False, highlight=False)

    def done(self) -> None:
        """Print the line above the bar."""
        took = time.monotonic() - self._start
        text = f"{self._head}: {self._rounds} rounds, {took:.0f} s"
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def show_progress(stream: TextIO | None = None) -> Progress:
    """Return a bar where ``stream`` is a terminal and rich is installed, else plain lines."""
    stream = stream or sys.stderr
    if stream.isatty():
        try:
            from rich.console import Console

            return Bar(Console(file=stream))
        except ImportError:
            pass
    return Lines(stream)
