"""Runs that are resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback

from convattn.tasks.classification import (
    TrainResult,
    load_checkpoint,
    load_config,
    resume,
    train,
)
from tests.tasks.classification.runs import (
    STILL,
    rows,
    silent,
    tiny,
    write_colors,
)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    write_colors(tmp_path)
    first = train(tiny(tmp_path, epochs=1), console=silent())
    longer = resume(first.run_dir, overrides={"epochs": 2}, console=silent())
    assert [row["epoch"] for row in rows(longer.run_dir)] == ["1", "2"]
    assert load_config(longer.run_dir / "config.yaml").epochs == 2
    starts = json.loads((longer.run_dir / "environment.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    write_colors(tmp_path)
    run_dir = train(tiny(tmp_path, epochs=2), console=silent()).run_dir
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    again = resume(run_dir, console=silent())
    assert (again.had_finished, again.epochs_done, again.stopped) == (True, 2, False)
    with pytest.raises(ValueError, match=r"has finished 2 epochs, .* epochs=12 continues it"):
        resume(run_dir, overrides={"epochs": 1}, console=silent())
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


class StopAt(Callback):
    """Ask the training to stop after a batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.where = (epoch, batch)
        self.batches = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.batches += 1
        if (trainer.current_epoch, arguments[-1]) == self.where:
            signal.raise_signal(signal.SIGTERM)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


def test_a_run_that_is_stopped_twice_within_an_epoch_keeps_its_card_and_callbacks(
    tmp_path: Path,
) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, epochs=3, batch_size=4)
    run_dir = train(config, callbacks=[StopAt(1, 1)], console=silent()).run_dir
    last = run_dir / "checkpoints" / "last.ckpt"
    first = load_checkpoint(last).card
    stop = StopAt(1, 3)
    assert resume(run_dir, callbacks=[stop], console=silent()).batches_done == 4
    assert stop.batches == 6 + 4
    card = load_checkpoint(last).card
    assert (card.epoch, card.metrics) == (1, first.metrics)
    assert card.metrics
    # The rest of the epoch is given up: the run has then finished.
    given_up = resume(run_dir, overrides={"epochs": 1}, console=silent())
    assert (given_up.stopped, given_up.had_finished) == (False, False)
    assert resume(run_dir, overrides={"epochs": 1}, console=silent()).had_finished


def test_a_longer_run_follows_the_longer_schedule(tmp_path: Path) -> None:
    write_colors(tmp_path)
    first = train(tiny(tmp_path, epochs=2, name="longer"), console=silent())
    longer = resume(first.run_dir, overrides={"epochs": 4}, console=silent())
    straight = train(tiny(tmp_path, epochs=4, name="straight"), console=silent())
    found, wanted = ([row["lr"] for row in rows(run.run_dir)[2:]] for run in (longer, straight))
    assert found == wanted


def test_a_resumed_run_does_not_need_the_weights_that_the_run_began_with(
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


def test_resuming_from_an_earlier_checkpoint_drops_later_rows(tmp_path: Path) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, epochs=3, **STILL)  # the first epoch stays the best
    first = train(config, console=silent())
    checkpoint = first.run_dir / "checkpoints" / "best.ckpt"
    resume(checkpoint, console=silent())
    assert [row["epoch"] for row in rows(first.run_dir)] == ["1", "2", "3"]


FIXED = ["model", "data", "batch_size", "seed", "opt", "weight_decay", "pretrained", "init"]


@pytest.mark.parametrize("key", [*FIXED, "from_scratch"])
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
