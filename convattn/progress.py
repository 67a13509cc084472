"""Progress of long work: a bar on a terminal, a line every half minute anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, TextIO

from convattn.names import shown

_BAR_AFTER = 0.5  # seconds; shorter work shows no bar
_BAR_EVERY = 0.1


class Progress:
    """Count finished items, and show the count, the rate and the time left.

    Where it writes to a terminal, it shows a bar while the work lasts. Where it writes to a pipe, a
    file or a notebook, it prints a line at most every ``every`` seconds. An error while writing
    ends the display, never the work.

    Args:
        title: what is done, such as "checking images".
        total: number of items, None if it is not known.
        unit: name of the items in the plural.
        stream: where to write, by default standard error.
        every: seconds between two lines; also the time over which the rate is measured.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "images",
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self._title, self._total, self._unit = shown(title), total, unit
        self._every, self._clock = every, clock
        now = clock()
        self._samples = deque([(now, 0)])  # times and counts, to measure the rate
        self._display = _open_display(_Output(sys.stderr if stream is None else stream), every)
        self._next = now + self._display.delay

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def advance(self, count: int = 1, numbers: str = "") -> None:
        """Add ``count`` finished items.

        Args:
            count: number of items.
            numbers: further text for the display, such as "loss 0.41".
        """
        self.done += count
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._display.interval
        try:
            self._display.show(self._title, self._state(now, numbers), self.done, self._total)
        except Exception:  # a display never ends the work
            self.close()

    def close(self) -> None:
        """End the display; a bar is removed from the terminal."""
        with contextlib.suppress(Exception):
            self._display.close()
        self._display = _Nothing()
        self._next = float("inf")

    def _state(self, now: float, numbers: str) -> str:
        """Return such as "12,000 of 50,000, 410 images/s, 1:32 left"."""
        rate = self._rate(now)
        parts = [f"{self.done:,} {self._unit}"]
        if self._total is not None:
            parts = [f"{self.done:,} of {self._total:,}"]
        if rate > 0:
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s")
        if rate > 0 and self._total is not None:
            parts.append(f"{_duration(max(0, self._total - self.done) / rate)} left")
        return ", ".join([*parts, shown(numbers)] if numbers else parts)

    def _rate(self, now: float) -> float:
        """Return items per second over the last ``every`` seconds, or since the start."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._every:
            self._samples.popleft()
        start, before = self._samples[0]
        self._samples.append((now, self.done))
        return (self.done - before) / (now - start) if now > start else 0.0


class _Display(Protocol):
    delay: float  # seconds until it is first shown
    interval: float  # seconds between two updates

    def show(self, title: str, state: str, done: int, total: int | None) -> None: ...

    def close(self) -> None: ...


class _Nothing:
    delay = interval = float("inf")

    def show(self, title: str, state: str, done: int, total: int | None) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Lines:
    def __init__(self, output: _Output, every: float) -> None:
        self.delay = self.interval = every
        self._output = output

    def show(self, title: str, state: str, done: int, total: int | None) -> None:
        """Print one line."""
        self._output.write(f"{title}  {state}\n")
        self._output.flush()

    def close(self) -> None:
        """Do nothing: the lines stay."""


class _Bar:
    delay, interval = _BAR_AFTER, _BAR_EVERY

    def __init__(self, console: Any, redirect_stderr: bool) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # No thread refreshes the bar: a fork while the thread holds a lock would block the child.
        # Standard output is not redirected: it may be a file, while the bar is on standard error.
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=redirect_stderr,
        )
        self._task = self._bar.add_task("", total=None, state="")

    def show(self, title: str, state: str, done: int, total: int | None) -> None:
        """Draw the bar."""
        self._bar.start()
        self._bar.update(self._task, description=title, state=state, completed=done, total=total)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class _Output:
    """A stream for text that accepts every text and ignores the stream's errors."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def is_stderr(self) -> bool:
        return self._stream is sys.stderr

    def isatty(self) -> bool:
        with contextlib.suppress(Exception):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("there is no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write the text, with an escape sequence for what the stream cannot encode."""
        if self._stream is not None:
            encoding = self.encoding
            with self._no_errors():
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._no_errors():
                self._stream.flush()

    @contextlib.contextmanager
    def _no_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # such as a closed pipe or a full disk
            self._stream = None


def _open_display(output: _Output, every: float) -> _Display:
    """Return a bar for a terminal, lines for any other stream or where rich is not installed."""
    if output.isatty():
        with contextlib.suppress(Exception):
            from rich.console import Console

            console = Console(file=output)  # type: ignore[arg-type]
            if console.is_interactive and not console.is_jupyter:
                return _Bar(console, redirect_stderr=output.is_stderr)
    return _Lines(output, every)


def _duration(seconds: float) -> str:
    """Return such as "1:32" or "2:05:10"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
