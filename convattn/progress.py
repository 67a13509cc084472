"""Progress of long work: a bar on a terminal, a line every half minute anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from convattn.names import shown

if TYPE_CHECKING:
    from rich.console import Console

_BAR_AFTER = 0.5  # seconds; shorter work shows no bar
_BAR_EVERY = 0.1
_SECOND = 1.0  # between two updates by the thread, and between two texts of further numbers

# Held while a display is written. A fork waits for it: no lock of the display, the console or the
# stream is held by another thread at that moment, and the child can print.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
    )


class Progress:
    """Count finished items, and show the count, the rate and the time left.

    Where it writes to a terminal, it shows a bar while the work lasts. Where it writes to a pipe, a
    file or a notebook, it prints a line every ``every`` seconds. A thread shows both while no item
    is finished for a long time. An error while writing ends the display, never the work.

    Args:
        title: what is done, such as "checking images".
        total: number of items, None if it is not known.
        unit: name of the items in the plural.
        stream: where to write, by default standard error.
        every: seconds between two lines; also the time over which the rate is measured.
        clock: returns the time in seconds; with another clock than the default, no thread starts.
        console: where to write instead of ``stream``; what others print to it appears above the
            bar.
        done: number of items that were finished earlier.
        left: returns the seconds left from the number of finished items and the rate; by default
            the time for the remaining items.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "images",
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        console: Console | None = None,
        done: int = 0,
        left: Callable[[int, float], float] | None = None,
    ) -> None:
        self.done = done
        self._title, self._total, self._unit = shown(title), total, unit
        self._every, self._clock, self._left = every, clock, left
        self._numbers = ""
        now = clock()
        self._start = self._counted = now
        self._samples = deque([(now, done)])  # times and counts, to measure the rate
        self._display = _open_display(stream, console, every)
        self._next = now + self._display.delay
        self._closed = threading.Event()
        if self._next < float("inf") and clock is time.monotonic:
            _start_thread(self, self._closed, min(_SECOND, every))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def advance(self, count: int = 1, numbers: str | Callable[[], str] = "") -> None:
        """Add ``count`` finished items.

        Args:
            count: number of items.
            numbers: further text for the display, such as "loss 0.41", or a function that returns
                it and is called at most once a second.
        """
        self.done += count
        now = self._clock()
        if not callable(numbers):
            self._numbers = numbers
        elif now >= min(self._next, self._counted + _SECOND):
            self._numbers, self._counted = numbers(), now
        self.refresh()

    def refresh(self) -> None:
        """Update the display if it is time for it."""
        now = self._clock()
        if now < self._next:
            return
        with _LOCK:
            if now < self._next:  # another thread was faster
                return
            self._next = now + self._display.interval
            try:
                self._display.show(self._title, self._state(now), self.done, self._total)
            except Exception:  # a display never ends the work
                self.close()

    def close(self) -> None:
        """End the display; a bar is removed from the terminal."""
        self._closed.set()
        with _LOCK:
            with contextlib.suppress(Exception):
                self._display.close()
            self._display = _Nothing()
            self._next = float("inf")

    def _state(self, now: float) -> str:
        """Return such as "12,000 of 50,000, 410 images/s, 1:32 left"."""
        rate = self._rate(now)
        parts = []
        if self._total is not None:
            parts.append(f"{self.done:,} of {self._total:,}")
        elif self.done:
            parts.append(f"{self.done:,} {self._unit}")
        if rate > 0:
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s")
        else:
            parts.append(f"{duration(now - self._start)} so far")
        if rate > 0 and self._total is not None:
            seconds = max(0, self._total - self.done) / rate
            seconds = seconds if self._left is None else self._left(self.done, rate)
            parts.append(f"{duration(seconds)} left")
        return ", ".join([*parts, shown(self._numbers)] if self._numbers else parts)

    def _rate(self, now: float) -> float:
        """Return items per second over the last ``every`` seconds, or since the start."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._every:
            self._samples.popleft()
        start, before = self._samples[0]
        self._samples.append((now, self.done))
        return (self.done - before) / (now - start) if now > start else 0.0


def _start_thread(progress: Progress, closed: threading.Event, every: float) -> None:
    """Start a thread that refreshes the display until it is closed or forgotten."""
    found = weakref.ref(progress)

    def run() -> None:
        while not closed.wait(every) and (progress := found()) is not None:
            progress.refresh()
            del progress

    with contextlib.suppress(RuntimeError):  # no more threads: items alone update the display
        threading.Thread(target=run, daemon=True).start()


def open_console() -> Console:
    """Return a console on standard output that ignores the stream's errors.

    Notebooks get plain text.
    """
    from rich.console import Console

    return Console(file=_Output(sys.stdout), force_jupyter=False)  # type: ignore[arg-type]


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

    def __init__(self, console: Any, redirect_stdout: bool, redirect_stderr: bool) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # rich's own thread would not wait for a fork. A stream that is not the bar's terminal is
        # not redirected: it may be a file.
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24 if console.width >= 110 else 8),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=redirect_stdout,
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


def _open_display(stream: TextIO | None, console: Console | None, every: float) -> _Display:
    """Return a bar for a terminal, lines for any other stream or where rich is not installed."""
    if console is not None:
        if console.quiet:
            return _Nothing()
        if console.is_interactive and not console.is_jupyter:
            return _Bar(console, _is_terminal(sys.stdout), _is_terminal(sys.stderr))
        return _Lines(_Output(console.file), every)  # type: ignore[arg-type]
    output = _Output(sys.stderr if stream is None else stream)
    if output.isatty():
        with contextlib.suppress(Exception):
            from rich.console import Console

            found = Console(file=output)  # type: ignore[arg-type]
            if found.is_interactive and not found.is_jupyter:
                return _Bar(found, redirect_stdout=False, redirect_stderr=output.is_stderr)
    return _Lines(output, every)


def _is_terminal(stream: TextIO | None) -> bool:
    return _Output(stream).isatty()


def duration(seconds: float) -> str:
    """Return such as "1:32", "2:05:10" or "3 d 4 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, more = divmod(hours, 24)
    if days:
        return f"{days} d {more} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
