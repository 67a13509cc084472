"""Runs that are stopped, and go on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from convattn.tasks.classification import TrainResult, load_config, resume, train
from tests.tasks.classification.runs import (
    STILL,
    rows,
    silent,
    timeless,
    tiny,
    weights,
    write_colors,
)


class PressCtrlC(Callback):
    """Interrupt the training in the middle of an epoch, or in its validation."""

    def __init__(
        self, epoch: int, batch: int | None = None, number: signal.Signals = signal.SIGINT
    ) -> None:
        self.epoch = epoch
        self.batch = batch
        self.number = number

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            signal.raise_signal(self.number)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch and self.batch is None:
            signal.raise_signal(self.number)


def test_resuming_after_a_finished_epoch_equals_not_stopping(tmp_path: Path) -> None:
    check_resumed_equals_straight(tmp_path, PressCtrlC(epoch=1))


def test_resuming_in_the_middle_of_an_epoch_equals_not_stopping(tmp_path: Path) -> None:
    check_resumed_equals_straight(tmp_path, PressCtrlC(epoch=1, batch=1), (1, 2))


def test_ctrl_c_in_the_last_batch_waits_for_validation(tmp_path: Path) -> None:
    check_resumed_equals_straight(tmp_path, PressCtrlC(epoch=1, batch=2))


def check_resumed_equals_straight(
    folder: Path, press: PressCtrlC, done: tuple[int, int] = (2, 0)
) -> None:
    """Weights, their average and all metrics; with mixup, dropout and random augmentation."""
    write_colors(folder, count=8)
    changes: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 4,
        "ema": True,
        "ema_decay": 0.9,
        "mixup": 0.4,
    }
    changes |= {"drop": 0.2, "auto_augment": "rand-m5-inc1", "erasing": 0.3}
    straight = train(tiny(folder, name="straight", **changes), console=silent())
    stopped = train(tiny(folder, name="stopped", **changes), callbacks=[press], console=silent())
    assert stopped.stopped
    assert stopped.evaluation is None
    assert (stopped.epochs_done, stopped.batches_done) == done
    resumed = resume(stopped.run_dir, console=silent())
    assert not resumed.stopped
    assert timeless(resumed.run_dir) == timeless(straight.run_dir)
    for name in ("best", "last"):
        for key, value in weights(straight.run_dir, name).items():
            torch.testing.assert_close(weights(resumed.run_dir, name)[key], value)
    starts = json.loads((resumed.run_dir / "environment.json").read_text())["starts"]
    assert len(starts) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_given_back_afterwards(tmp_path: Path, number: signal.Signals) -> None:
    write_colors(tmp_path)
    before = signal.getsignal(number)
    press = PressCtrlC(0, batch=0, number=number)
    result = train(tiny(tmp_path), callbacks=[press], console=silent())
    assert (result.stopped, result.batches_done) == (True, 1)
    assert signal.getsignal(number) is before


@pytest.fixture
def _as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C interrupts: a job that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Wait(Callback):
    """Wait, since signals in quick succession are one request."""

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.6)


@pytest.mark.usefixtures("_as_in_a_terminal")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    write_colors(tmp_path)
    presses = [PressCtrlC(0, batch=0), Wait(), PressCtrlC(0, batch=0)]
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path), callbacks=presses, console=silent())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    write_colors(tmp_path)
    first = train(tiny(tmp_path, epochs=1), console=silent())
    longer = resume(first.run_dir, overrides={"epochs": 2}, console=silent())
    assert [row["epoch"] for row in rows(longer.run_dir)] == ["1", "2"]
    assert load_config(longer.run_dir / "config.yaml").epochs == 2


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    write_colors(tmp_path)
    run_dir = train(tiny(tmp_path, epochs=2), console=silent()).run_dir
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    again = resume(run_dir, console=silent())
    assert (again.had_finished, again.epochs_done, again.stopped) == (True, 2, False)
    with pytest.raises(ValueError, match=r"has finished 2 epochs, .* epochs=12 continues it"):
        resume(run_dir, overrides={"epochs": 1}, console=silent())
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_a_longer_run_follows_the_longer_schedule(tmp_path: Path) -> None:
    write_colors(tmp_path)
    first = train(tiny(tmp_path, epochs=2, name="longer"), console=silent())
    longer = resume(first.run_dir, overrides={"epochs": 4}, console=silent())
    straight = train(tiny(tmp_path, epochs=4, name="straight"), console=silent())
    found, wanted = ([row["lr"] for row in rows(run.run_dir)[2:]] for run in (longer, straight))
    assert found == wanted


def test_going_on_does_not_need_the_weights_that_the_run_began_with(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_colors(tmp_path)
    begin = tmp_path / "begin.safetensors"
    begin.write_bytes((finished[1].run_dir / "checkpoints" / "best.safetensors").read_bytes())
    first = train(tiny(tmp_path, epochs=1, init=str(begin)), console=silent())
    begin.unlink()
    longer = resume(first.run_dir, overrides={"epochs": 2}, console=silent())
    assert len(rows(longer.run_dir)) == 2
    assert load_config(longer.run_dir / "config.yaml").init == str(begin)


def test_going_on_from_an_earlier_checkpoint_drops_later_rows(tmp_path: Path) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, epochs=3, **STILL)  # the first epoch stays the best
    first = train(config, console=silent())
    checkpoint = first.run_dir / "checkpoints" / "best.ckpt"
    resume(checkpoint, console=silent())
    assert [row["epoch"] for row in rows(first.run_dir)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "key",
    [
        "model",
        "data",
        "batch_size",
        "seed",
        "opt",
        "weight_decay",
        "pretrained",
        "init",
        "from_scratch",
    ],
)
def test_what_the_weights_depend_on_cannot_change(
    finished: tuple[Path, TrainResult], key: str
) -> None:
    with pytest.raises(ValueError, match=f"{key} cannot change in a resumed run"):
        resume(finished[1].run_dir, overrides={key: 1})


def test_resuming_needs_a_run(tmp_path: Path, finished: tuple[Path, TrainResult]) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint or run folder"):
        resume(tmp_path / "gone")
    weights_only = finished[1].run_dir / "checkpoints" / "best.safetensors"
    with pytest.raises(ValueError, match=r"cannot resume from .*: give a run folder"):
        resume(weights_only)
