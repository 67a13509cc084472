"""Show the progress of a benchmark: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


class Progress:
    """The base class, which shows nothing."""

    def group(self, name: str, number: int, total: int) -> None:
        """Show that a group of computations begins, number ``number`` of ``total``."""

    def say(self, text: str) -> None:
        """Show the current step."""

    def round(self, done: int, most: int) -> None:
        """Show that ``done`` rounds of at most ``most`` are finished."""

    def warn(self, text: str) -> None:
        """Show an error of a computation, or a note on its result."""

    def done(self) -> None:
        """Show that the group is finished."""

    def close(self) -> None:
        """End the display."""


quiet = Progress()


class Lines(Progress):
    """Print a line when a group is finished: for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._head, self._rounds, self._start = "", 0, 0.0

    def group(self, name: str, number: int, total: int) -> None:
        """Store the name and the start time for the line."""
        self._head, self._rounds, self._start = f"[{number}/{total}] {name}", 0, time.monotonic()

    def round(self, done: int, most: int) -> None:
        """Store the number of rounds for the line."""
        self._rounds = done

    def warn(self, text: str) -> None:
        """Print the text with the name of the group."""
        print(f"{self._head}: {text}", file=self._stream, flush=True)

    def done(self) -> None:
        """Print name, rounds and seconds of the group."""
        took = time.monotonic() - self._start
        text = f"{self._head}: {self._rounds} rounds, {took:.0f} s"
        print(text, file=self._stream, flush=True)


class Bar(Lines):
    """Print the same lines, with a bar for the current group below them."""

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
        """Reset the bar for a new group."""
        super().group(name, number, total)
        self._bar.reset(self._task, total=None, description=self._head, state="")

    def say(self, text: str) -> None:
        """Write the text beside the bar."""
        self._bar.update(self._task, state=text)

    def round(self, done: int, most: int) -> None:
        """Advance the bar."""
        super().round(done, most)
        self._bar.update(self._task, completed=done, total=most, state=f"round {done}")

    def warn(self, text: str) -> None:
        """Print the text above the bar."""
        self._bar.console.print(f"{self._head}: {text}", markup=False, highlight=False)

    def done(self) -> None:
        """Print name, rounds and seconds of the group above the bar."""
        took = time.monotonic() - self._start
        text = f"{self._head}: {self._rounds} rounds, {took:.0f} s"
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.stop()


def show_progress(stream: TextIO | None = None) -> Progress:
    """Return a bar if ``stream`` is a terminal and rich is installed, else plain lines."""
    stream = stream or sys.stderr
    if stream.isatty():
        try:
            from rich.console import Console

            return Bar(Console(file=stream))
        except ImportError:
            pass
    return Lines(stream)
