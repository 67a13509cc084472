from __future__ import annotations

import builtins
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from convattn.progress import Progress, duration, open_console
from tests.terminals import Terminal, plain


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch)


def work(progress: Progress, clock: Clock, seconds: int, rate: int = 400) -> None:
    """Finish ``rate`` items a second."""
    with progress:
        for _ in range(seconds):
            clock.now += 1
            progress.advance(rate)


def test_a_pipe_gets_a_line_every_half_minute(clock: Clock) -> None:
    stream = io.StringIO()
    work(Progress("checking images", 50_000, stream=stream, clock=clock), clock, 95)
    assert stream.getvalue().splitlines() == [
        "checking images  12,000 of 50,000, 400 images/s, 1:35 left",
        "checking images  24,000 of 50,000, 400 images/s, 1:05 left",
        "checking images  36,000 of 50,000, 400 images/s, 0:35 left",
    ]


def test_short_work_prints_no_line(clock: Clock) -> None:
    stream = io.StringIO()
    work(Progress("checking images", 50_000, stream=stream, clock=clock), clock, 29)
    assert stream.getvalue() == ""


def test_lines_are_written_at_once(tmp_path: Path, clock: Clock) -> None:
    with (tmp_path / "log.txt").open("w") as stream:
        progress = Progress("listing classes", unit="classes", stream=stream, clock=clock)
        clock.now += 31
        progress.advance(3)
        assert (tmp_path / "log.txt").read_text() == "listing classes  3 classes, 0.1 classes/s\n"


def test_a_line_comes_while_no_item_is_finished(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("evaluating", 50_000, stream=stream, clock=clock)
    for _ in range(62):
        clock.now += 1
        progress.refresh()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "evaluating  0 of 50,000, 0:30 so far",
        "evaluating  0 of 50,000, 1:00 so far",
    ]


def test_work_without_a_number_of_items_shows_its_time(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("writing report.html", stream=stream, clock=clock) as progress:
        clock.now += 31
        progress.refresh()
    assert stream.getvalue() == "writing report.html  0:31 so far\n"


def test_a_thread_shows_the_progress_of_slow_work() -> None:
    stream = io.StringIO()
    end = time.monotonic() + 30
    with Progress("evaluating", 50_000, stream=stream, every=0.02):
        while stream.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    shown = stream.getvalue()
    assert shown.startswith("evaluating  0 of 50,000, 0:00 so far\n")
    assert shown.count("\n") >= 2


def test_nothing_is_shown_after_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("evaluating", 50_000, stream=stream, clock=clock) as progress:
        pass
    clock.now += 60
    progress.refresh()
    assert stream.getvalue() == ""


class SlowStream(io.StringIO):
    """A stream that takes a while to write, as a full pipe does."""

    def write(self, text: str) -> int:
        time.sleep(0.05)
        return super().write(text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_a_line_is_written_can_show_progress() -> None:
    with Progress("evaluating", 3, stream=SlowStream(), every=0.001):
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(10)  # ends the child if it waits for the parent's thread
                with Progress("loading", 3, stream=io.StringIO(), every=0.0) as progress:
                    progress.advance()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            time.sleep(0.02)


def test_items_that_were_finished_earlier_do_not_count_for_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("epoch 1/2", 50_000, stream=stream, clock=clock, done=20_000)
    work(progress, clock, 30)
    assert stream.getvalue() == "epoch 1/2  32,000 of 50,000, 400 images/s, 0:45 left\n"


def test_the_time_left_may_include_other_work(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("epoch 1/2", 50_000, stream=stream, clock=clock, left=lambda n, r: n / r)
    work(progress, clock, 45)
    assert stream.getvalue() == "epoch 1/2  12,000 of 50,000, 400 images/s, 0:30 left\n"


def test_further_numbers_are_computed_once_a_second(clock: Clock) -> None:
    stream, calls = io.StringIO(), []

    def numbers() -> str:
        calls.append(clock.now)
        return f"loss {len(calls)}"

    with Progress("epoch 1/2", 50_000, stream=stream, clock=clock) as progress:
        for _ in range(240):
            clock.now += 0.125
            progress.advance(50, numbers)
    assert len(calls) == pytest.approx(30, abs=1)
    assert stream.getvalue().endswith(f"left, loss {len(calls)}\n")


def test_an_unknown_total_has_no_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    work(Progress("listing", stream=stream, clock=clock), clock, 30)
    assert stream.getvalue() == "listing  12,000 images, 400 images/s\n"


def test_the_rate_is_that_of_the_last_half_minute(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("checking images", 1_000_000, stream=stream, clock=clock)
    for rate in (10, 1000):
        clock.now += 30
        progress.advance(30 * rate)
    assert "30,300 of 1,000,000, 1,000 images/s, 16:10 left" in stream.getvalue().splitlines()[1]


def test_hours_and_further_numbers_are_shown(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("epoch 1", 1000, stream=stream, clock=clock)
    clock.now += 30
    progress.advance(3, "loss 0.41\x1b[2J")
    assert stream.getvalue() == (
        "epoch 1  3 of 1,000, 0.1 images/s, 2:46:10 left, loss 0.41\\x1b[2J\n"
    )


def test_more_items_than_the_total_leave_no_time(clock: Clock) -> None:
    stream = io.StringIO()
    work(Progress("checking images", 10, stream=stream, clock=clock), clock, 30)
    assert stream.getvalue() == "checking images  12,000 of 10, 400 images/s, 0:00 left\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_stream_of_few_characters_gets_escapes(clock: Clock, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    work(Progress("猫 \udce9 x", 100, stream=stream, clock=clock), clock, 30)
    assert raw.getvalue().startswith(b"\\u732b \\udce9 x  12,000 of 100")


def test_a_terminal_gets_a_bar_that_is_removed_at_the_end(terminal: Terminal, clock: Clock) -> None:
    progress = Progress("checking images", 50_000, stream=terminal.stream, clock=clock)
    with progress:
        progress.advance(4)
        assert terminal.read() == ""
        clock.now += 10
        progress.advance(3996)
        drawn = terminal.read()
        assert "checking images" in drawn
        assert "━━" in drawn
        assert "4,000 of 50,000, 400 images/s, 1:55 left" in drawn
        progress.advance()
        assert terminal.read() == ""  # the bar is drawn at most ten times a second
    assert "\x1b[2K" in terminal.read()


def test_short_work_shows_no_bar(terminal: Terminal, clock: Clock) -> None:
    with Progress("checking images", 2, stream=terminal.stream, clock=clock) as progress:
        clock.now += 0.4
        progress.advance(2)
    assert terminal.read() == ""


def test_a_terminal_shows_a_bar_where_the_total_is_unknown(
    terminal: Terminal, clock: Clock
) -> None:
    work(Progress("listing [red]", stream=terminal.stream, clock=clock), clock, 1)
    drawn = terminal.read()
    assert "listing [red]" in drawn
    assert "400 images, 400 images/s" in drawn


def test_an_ascii_terminal_gets_a_bar_in_ascii(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    terminal = Terminal(monkeypatch, "ascii")
    work(Progress("猫", 800, stream=terminal.stream, clock=clock), clock, 1)
    drawn = terminal.read()
    assert drawn.isascii()
    assert "\\u732b" in drawn
    assert "400 of 800" in drawn


def test_printed_results_do_not_pass_through_the_bar(
    terminal: Terminal, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("checking images", 2, stream=terminal.stream, clock=clock) as progress:
        clock.now += 1
        progress.advance()
        print("result")
    assert "result" not in terminal.read()
    assert capsys.readouterr().out == "result\n"


def test_a_shared_console_prints_above_the_bar(terminal: Terminal, clock: Clock) -> None:
    console = Console(file=terminal.stream)
    with Progress("epoch 1/2", 3, clock=clock, console=console) as progress:
        clock.now += 1
        progress.advance()
        terminal.read()
        console.print("stopping")
        assert re.search(r"stopping\s+epoch 1/2", plain(terminal.read()))


def test_a_quiet_console_shows_nothing(terminal: Terminal, clock: Clock) -> None:
    console = Console(file=terminal.stream, quiet=True)
    work(Progress("epoch 1/2", 3, clock=clock, console=console), clock, 31)
    assert terminal.read() == ""


def test_a_console_on_a_pipe_gets_lines(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(file=stream)
    work(Progress("epoch 1/2", 50_000, clock=clock, console=console), clock, 31)
    assert stream.getvalue() == "epoch 1/2  12,000 of 50,000, 400 images/s, 1:35 left\n"


def test_a_narrow_terminal_shows_the_time_left(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    work(Progress("validation 10/100", 50_000, stream=terminal.stream, clock=clock), clock, 1)
    assert "400 of 50,000, 400 images/s, 2:04 left" in terminal.read()


def test_a_console_survives_a_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    console = open_console()
    for _ in range(3):
        console.print("epoch 1/2")
        console.file.flush()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (92, "1:32"), (7510, "2:05:10"), (273_600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class ZMQInteractiveShell:
    """The name by which rich recognises a notebook."""


def test_a_notebook_gets_lines(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    work(Progress("checking images", 50_000, stream=terminal.stream, clock=clock), clock, 31)
    assert terminal.read() == "checking images  12,000 of 50,000, 400 images/s, 1:35 left\r\n"


def test_a_terminal_without_cursor_control_gets_lines(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    work(Progress("checking images", 50_000, stream=terminal.stream, clock=clock), clock, 31)
    assert terminal.read() == "checking images  12,000 of 50,000, 400 images/s, 1:35 left\r\n"


def test_a_pipe_gets_lines_whatever_force_color_says(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    work(Progress("checking images", 50_000, stream=stream, clock=clock), clock, 31)
    assert "\x1b" not in stream.getvalue()


def test_without_rich_a_terminal_gets_lines(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    work(Progress("checking images", 50_000, stream=terminal.stream, clock=clock), clock, 31)
    assert terminal.read() == "checking images  12,000 of 50,000, 400 images/s, 1:35 left\r\n"


def test_a_terminal_that_hangs_up_does_not_end_the_work(terminal: Terminal, clock: Clock) -> None:
    progress = Progress("checking images", 50_000, stream=terminal.stream, clock=clock)
    with progress:
        clock.now += 1
        progress.advance()
        terminal.hang_up()
        for _ in range(3):
            clock.now += 31
            progress.advance()
    assert progress.done == 4


def test_a_closed_stream_does_not_end_the_work(tmp_path: Path, clock: Clock) -> None:
    stream = (tmp_path / "log.txt").open("w")
    stream.close()
    progress = Progress("checking images", 3, stream=stream, clock=clock)
    work(progress, clock, 62, rate=1)
    assert progress.done == 62


def test_without_standard_error_nothing_is_shown(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    progress = Progress("checking images", 3, clock=clock)
    work(progress, clock, 31, rate=1)
    assert progress.done == 31


PROGRAM = """
import sys
from convattn.progress import Progress
from tests.terminals import Terminal
sys.stdin.readline()
with Progress("checking images", 3, every=0.0) as progress:
    for _ in range(3):
        progress.advance()
print(progress.done)
"""


def test_a_closed_pipe_does_not_end_the_work(clock: Clock) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    progress = Progress("checking images", 3, stream=os.fdopen(writer, "w"), clock=clock)
    work(progress, clock, 62, rate=1)
    assert progress.done == 62


@pytest.mark.slow
def test_a_closed_pipe_does_not_change_the_exit_code() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stderr is not None
    program.stderr.close()
    program.stdin.write("\n")
    program.stdin.close()
    assert program.stdout.read() == "3\n"
    assert program.wait(60) == 0


def test_an_error_of_the_work_is_passed_on_and_the_bar_removed(
    terminal: Terminal, clock: Clock
) -> None:
    def fail() -> None:
        with Progress("checking images", 3, stream=terminal.stream, clock=clock) as progress:
            clock.now += 1
            progress.advance()
            raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        fail()
    assert "\x1b[2K" in terminal.read()
