from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from convattn.runs.metrics import Column
from convattn.training.console import EpochLines
from tests.terminals import Terminal, plain

COLUMNS = (
    Column("train_loss", "loss", "loss", 8),
    Column("val_top1", "top-1", "share", 7),
)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Training:
    """A training of some epochs of ten batches of 100 images, and 200 validation images.

    Args:
        console: where the lines are written.
        epochs: number of epochs.
        batches_done: batches of the first epoch that an earlier start has trained.
    """

    def __init__(self, console: Console, *, epochs: int = 3, batches_done: int = 0) -> None:
        self.clock = Clock()
        self.lines = EpochLines(console, COLUMNS, ("val_top1",), clock=self.clock)
        self.batches_done = batches_done
        self.trainer: Any = SimpleNamespace(
            current_epoch=0,
            max_epochs=epochs,
            world_size=1,
            num_training_batches=10,
            callback_metrics={"train_loss": 1.5, "val_top1": 0.25, "images_per_second": 400.0},
        )
        data = SimpleNamespace(
            batch_size=100,
            batches_done=batches_done,
            epoch=0,
            source=SimpleNamespace(val=range(200)),
        )
        self.module: Any = SimpleNamespace(data=data, train_means=lambda: {"train_loss": 1.5})

    def start(self) -> None:
        """Start to load the first batch."""
        self.lines.on_fit_start(self.trainer, self.module)

    def train(self, batches: int = 10, seconds: float = 4) -> None:
        """Train batches of the next epoch, ``seconds`` each."""
        if not self.batches_done:
            self.lines.on_train_epoch_start(self.trainer, self.module)
        batch = {"index": range(100)}
        for number in range(self.batches_done, min(self.batches_done + batches, 10)):
            self.lines.on_train_batch_start(self.trainer, self.module, batch, number)
            self.clock.now += seconds
            self.lines.on_train_batch_end(self.trainer, self.module, None, batch, number)
        self.batches_done = 0

    def validate(self, seconds: float = 20) -> None:
        """Validate in two batches, ``seconds`` each, and end the epoch."""
        self.lines.on_validation_start(self.trainer, self.module)
        for number in range(2):
            self.clock.now += seconds
            batch = {"index": range(100)}
            self.lines.on_validation_batch_end(self.trainer, self.module, None, batch, number)
        self.lines.on_validation_end(self.trainer, self.module)
        self.lines.on_train_epoch_end(self.trainer, self.module)
        self.trainer.current_epoch += 1

    def wait(self, seconds: int) -> None:
        """Let time pass while no batch is finished, as the thread of a `Progress` sees it."""
        for _ in range(seconds):
            self.clock.now += 1
            progress = self.lines.progress
            assert progress is not None
            progress.refresh()


@pytest.fixture
def pipe() -> Console:
    return Console(file=io.StringIO(), width=120)


def lines(console: Console) -> list[str]:
    """Return the lines that were written to a pipe."""
    file: Any = console.file
    return file.getvalue().splitlines()


def test_a_pipe_gets_a_line_every_half_minute_in_training_and_validation(pipe: Console) -> None:
    training = Training(pipe, epochs=2)
    training.start()
    training.lines.on_train_start(training.trainer, training.module)
    training.train()
    training.validate()
    assert lines(pipe) == [
        "  epoch      loss    top-1   images/s     left",
        "epoch 1/2  800 of 1,000, 25 images/s, 0:48 left, loss 1.5000",
        "validation 1/2  200 of 200, 5.0 images/s, 1:20 left",
        "    1/2    1.5000   25.00%        400     1:20  best",
    ]


def test_a_pipe_gets_a_line_while_the_first_batch_is_loaded(pipe: Console) -> None:
    training = Training(pipe)
    training.start()
    training.wait(61)
    assert lines(pipe) == [
        "loading the first batch  0:30 so far",
        "loading the first batch  1:00 so far",
    ]


def test_a_pipe_gets_a_line_while_a_batch_is_trained_for_minutes(pipe: Console) -> None:
    training = Training(pipe)
    training.train(batches=1)
    training.wait(30)
    assert lines(pipe) == ["epoch 1/3  100 of 1,000, 3.3 images/s, 14:30 left, loss 1.5000"]


def test_the_time_left_includes_validation_from_the_second_epoch_on(pipe: Console) -> None:
    training = Training(pipe, epochs=3)
    for _ in range(3):
        training.train()
        training.validate()
    left = [line.split(" left")[0].split()[-1] for line in lines(pipe) if line.startswith("epoch")]
    # 8 seconds of this epoch, 40 of each later one, and 40 of each validation
    assert left == ["1:28", "2:08", "0:48"]
    ends = [line.split()[4] for line in lines(pipe) if " 25.00% " in line]
    assert ends == ["2:40", "1:20", "0:00"]


def test_a_run_resumed_within_an_epoch_counts_the_batches_before(pipe: Console) -> None:
    training = Training(pipe, epochs=1, batches_done=6)
    training.train(seconds=10)
    training.validate(seconds=1)
    assert lines(pipe) == [
        "epoch 1/1  900 of 1,000, 10 images/s, 0:10 left, loss 1.5000",
        "    1/1    1.5000   25.00%        400     0:00  best",
    ]


def test_a_terminal_gets_a_bar_in_training_and_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(monkeypatch)
    training = Training(Console(file=terminal.stream), epochs=2)
    training.start()
    training.wait(1)
    assert "loading the first batch" in terminal.read()
    training.train(batches=5)
    drawn = plain(terminal.read())
    assert "epoch 1/2 ━" in drawn
    assert "500 of 1,000, 25 images/s, 1:00 left, loss 1.5000" in drawn
    training.validate()
    drawn = plain(terminal.read())
    assert "validation 1/2 ━" in drawn
    assert "100 of 200, 5.0 images/s" in drawn
    assert drawn.rstrip().endswith("best")


def test_the_bar_is_removed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    training = Training(Console(file=terminal.stream))
    training.train(batches=1)
    terminal.read()
    training.lines.on_exception(training.trainer, training.module, ValueError())
    assert terminal.read().endswith("\x1b[2K")
    assert training.lines.progress is None


def test_other_processes_print_nothing(pipe: Console) -> None:
    training = Training(pipe)
    training.lines.disable()
    training.train()
    training.validate()
    assert lines(pipe) == []
