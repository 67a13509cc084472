"""The checkpoints of a run: whole, frequent, and enough to continue to the same result."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from convattn.runs.weights import read_ckpt
from convattn.tasks.classification import TrainResult, resume, train
from tests.tasks.classification.runs import (
    silent,
    timeless,
    tiny,
    weights,
    write_colors,
    written,
)

pytestmark = pytest.mark.slow  # trainings of seconds each

OFTEN = 1e-9  # minutes: after every update


class DieError(Exception):
    """A training ends as if its process were killed."""


class Die(Callback):
    """End the training after a batch, or before a checkpoint that an epoch's end writes."""

    def __init__(self, epoch: int, batch: int | None = None, *, save: int | None = None) -> None:
        self.epoch = epoch
        self.batch = batch
        self.save = save
        self.saves = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise DieError

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saves = 0

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        self.saves += 1
        if trainer.current_epoch == self.epoch and self.save == self.saves:
            raise DieError


def config(folder: Path, **changes: Any) -> Any:
    """Three epochs of six batches, with everything random."""
    values: dict[str, Any] = {"epochs": 3, "batch_size": 4, "accumulate": 2, "ema": True}
    values |= {"ema_decay": 0.9, "mixup": 0.4, "drop": 0.2, "auto_augment": "rand-m5-inc1"}
    return tiny(folder, **{**values, "checkpoint_minutes": 0, **changes})


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A run that nothing interrupts, and the folder of its images."""
    folder = write_colors(tmp_path_factory.mktemp("straight")).parent
    return folder, train(config(folder, name="straight"), console=silent())


def check_continues(folder: Path, wanted: Path, die: Die, **changes: Any) -> str:
    """Compare a run that died and was continued with another; return what it has printed."""
    run = folder / "runs" / f"died-{die.epoch}-{die.batch}-{die.save}"
    with pytest.raises(DieError):
        train(config(folder, name=run.name, **changes), callbacks=[die], console=silent())
    console = silent()
    resume(run, console=console)
    assert timeless(run) == timeless(wanted)
    for name in ("best", "last"):
        ours, theirs = weights(run, name), weights(wanted, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert read_ckpt(run / "checkpoints" / f"{name}.ckpt")["convattn"]["best_epoch"] > 0
    return written(console)


@pytest.mark.parametrize("die", [Die(0, 3), Die(1, 5)])
def test_a_run_that_dies_within_an_epoch_continues_from_its_last_update(
    straight: tuple[Path, TrainResult], die: Die
) -> None:
    text = check_continues(straight[0], straight[1].run_dir, die, checkpoint_minutes=OFTEN)
    assert die.batch is not None
    assert f"after {die.epoch} epochs and {die.batch - die.batch % 2} batches" in text


@pytest.mark.parametrize("die", [Die(0, save=1), Die(1, save=1)])
def test_a_run_that_dies_at_a_checkpoint_of_an_epoch_continues(
    straight: tuple[Path, TrainResult], die: Die
) -> None:
    check_continues(straight[0], straight[1].run_dir, die)


def test_a_run_without_last_continues_from_its_first_best_checkpoint(
    straight: tuple[Path, TrainResult],
) -> None:
    text = check_continues(straight[0], straight[1].run_dir, Die(0, save=2))
    assert "has no last.ckpt: the run continues from best.ckpt" in text


def test_no_checkpoint_within_an_epoch_where_none_is_due(tmp_path: Path) -> None:
    write_colors(tmp_path)
    for minutes in (0, 60):
        name = f"every-{minutes}"
        with pytest.raises(DieError):
            train(
                config(tmp_path, name=name, checkpoint_minutes=minutes),
                callbacks=[Die(0, 5)],
                console=silent(),
            )
        assert not (tmp_path / "runs" / name / "checkpoints" / "last.ckpt").exists()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 2:
                next(pl_module.parameters()).data.fill_(float("nan"))
                signal.raise_signal(signal.SIGTERM)

    write_colors(tmp_path)
    changes = {"accumulate": 1, "checkpoint_minutes": OFTEN}
    result = train(config(tmp_path, **changes), callbacks=[Spoil()], console=silent())
    assert (result.stopped, result.epochs_done, result.batches_done) == (True, 0, 2)
    resumed = resume(result.run_dir, console=silent())
    assert resumed.epochs_done == 3


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    write_colors(tmp_path)
    run = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    left = [run / ".convattn-12.tmp", run / "checkpoints" / ".convattn-34.tmp"]
    for path in left:
        path.write_bytes(b"half")
    resume(run, overrides={"epochs": 2}, console=silent())
    assert not any(path.exists() for path in left)


def test_a_new_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    write_colors(tmp_path)
    with pytest.raises(DieError):
        train(tiny(tmp_path, name="a"), callbacks=[Die(0, 0)], console=silent())
    assert not (tmp_path / "runs").exists()


def test_a_run_that_died_before_its_first_checkpoint_starts_again(
    straight: tuple[Path, TrainResult],
) -> None:
    text = check_continues(straight[0], straight[1].run_dir, Die(0, 4))
    assert "has no checkpoint yet: the training starts again" in text


@pytest.mark.parametrize("missing", ["data.json", "metrics.csv", "environment.json", "checkpoints"])
def test_a_run_that_died_while_it_began_starts_again(
    straight: tuple[Path, TrainResult], missing: str
) -> None:
    folder, wanted = straight
    run = folder / "runs" / f"died-without-{missing}"
    with pytest.raises(DieError):
        train(config(folder, name=run.name), callbacks=[Die(0, 3)], console=silent())
    if missing == "checkpoints":
        (run / missing).rmdir()
    else:
        (run / missing).unlink()
    resume(run, console=silent())
    assert timeless(run) == timeless(wanted.run_dir)


def test_a_run_without_its_settings_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"run has no config\.yaml and no .*remove the f"):
        resume(tmp_path / "run")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond a size; the signal that this sends is ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("minutes", [0, OFTEN])
def test_a_full_disk_keeps_the_last_whole_checkpoint(
    straight: tuple[Path, TrainResult], minutes: float
) -> None:
    folder, wanted = straight
    run = folder / "runs" / f"full-{minutes}"
    first = train(config(folder, name=run.name), callbacks=[StopAt(1, 1)], console=silent())
    before = read_ckpt(run / "checkpoints" / "last.ckpt")["convattn"]
    assert (first.epochs_done, first.batches_done) == (1, 2)
    said = r"cannot write .*checkpoints/(best|last)\.\w+: .* free disk space .* --resume .*full-"
    with full_disk(100_000), pytest.raises(OSError, match=said):
        resume(run, overrides={"checkpoint_minutes": minutes}, console=silent())
    assert read_ckpt(run / "checkpoints" / "last.ckpt")["convattn"] == before
    assert not [*run.rglob(".convattn-*")]
    resume(run, overrides={"checkpoint_minutes": 0}, console=silent())
    assert timeless(run) == timeless(wanted.run_dir)


class StopAt(Callback):
    """Ask the training to stop."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch = epoch
        self.batch = batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            signal.raise_signal(signal.SIGTERM)
