"""A training that is asked to stop: at every place, saved, and continued to the same result."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from convattn.tasks.classification import TrainResult, resume, train
from convattn.training import run
from convattn.training.signals import StopNow, StopRequest
from tests.tasks.classification.runs import (
    silent,
    timeless,
    tiny,
    weights,
    write_colors,
    written,
)

pytestmark = pytest.mark.slow  # trainings of seconds each

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BATCHES, VAL_BATCHES = 6, 2
# Where a signal comes in the second epoch: the hook, its batch, and what the run has reached.
PLACES: dict[str, tuple[str, int | None, tuple[int, int]]] = {
    "start of the epoch": ("on_train_epoch_start", None, (1, 0)),
    "first batch": ("on_train_batch_start", 0, (1, 2)),
    "before an update": ("on_train_batch_end", 2, (1, 4)),
    "after an update": ("on_train_batch_end", 1, (1, 2)),
    "last batch": ("on_train_batch_start", BATCHES - 1, (2, 0)),
    "end of the last batch": ("on_train_batch_end", BATCHES - 1, (2, 0)),
    "start of the validation": ("on_validation_start", None, (2, 0)),
    "first batch of the validation": ("on_validation_batch_start", 0, (2, 0)),
    "last batch of the validation": ("on_validation_batch_end", VAL_BATCHES - 1, (2, 0)),
    "end of the validation": ("on_validation_end", None, (2, 0)),
    "end of the epoch": ("on_train_epoch_end", None, (2, 0)),
    "a checkpoint is written": ("on_save_checkpoint", None, (2, 0)),
}


class SignalAt(Callback):
    """Send signals to this process where a hook of an epoch is called the first time."""

    def __init__(
        self, hook: str, batch: int | None = None, *, epoch: int = 1, number: int = signal.SIGTERM
    ) -> None:
        self.sent = False
        setattr(self, hook, self._hook(batch, epoch, number))

    def _hook(self, wanted: int | None, epoch: int, number: int) -> Any:
        def hook(trainer: pl.Trainer, *arguments: Any, **_: Any) -> None:
            batch = next((a for a in reversed(arguments) if isinstance(a, int)), None)
            if len(arguments) > 3 and wanted is not None and isinstance(arguments[-2], int):
                batch = arguments[-2]  # the last one is the number of the loader
            if not self.sent and trainer.current_epoch == epoch and wanted in (None, batch):
                self.sent = True
                signal.raise_signal(number)

        return hook


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C interrupts: a job that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A run that is never stopped, and the folder of its images."""
    folder = write_colors(tmp_path_factory.mktemp("straight")).parent
    return folder, train(config(folder), console=silent())


def config(folder: Path, **changes: Any) -> Any:
    """Three epochs with everything random: averaged weights, mixup, dropout, augmentation."""
    values: dict[str, Any] = {"epochs": 3, "batch_size": 4, "accumulate": 2, "ema": True}
    values |= {"ema_decay": 0.9, "mixup": 0.4, "drop": 0.2, "auto_augment": "rand-m5-inc1"}
    return tiny(folder, **{**values, **changes})


def check_equal(found: Path, wanted: Path) -> None:
    """Compare weights and metrics, bit for bit."""
    assert timeless(found) == timeless(wanted)
    for name in ("best", "last"):
        ours, theirs = weights(found, name), weights(wanted, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_at_every_place_saves_and_loses_nothing(
    straight: tuple[Path, TrainResult], place: str
) -> None:
    folder, wanted = straight
    hook, batch, reached = PLACES[place]
    stop = SignalAt(hook, batch)
    before = [signal.getsignal(number) for number in SIGNALS]
    stopped = train(config(folder), callbacks=[stop], console=silent())
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert (stopped.stopped, stopped.signal) == (True, signal.SIGTERM)
    assert (stopped.epochs_done, stopped.batches_done) == reached
    assert stopped.evaluation is None
    check_equal(resume(stopped.run_dir, console=silent()).run_dir, wanted.run_dir)


@pytest.fixture
def _no_nohup() -> Iterator[None]:
    """Give SIGHUP its usual effect: a training that nohup has started ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_no_nohup")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_start"])
def test_every_signal_that_ends_a_process_stops_a_training(
    straight: tuple[Path, TrainResult], hook: str, number: signal.Signals
) -> None:
    stop = SignalAt(hook, epoch=0, number=number)
    result = train(config(straight[0], epochs=2), callbacks=[stop], console=silent())
    assert (result.stopped, result.signal) == (True, number)
    assert result.epochs_done + result.batches_done > 0


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start"])
def test_a_signal_before_the_first_batch_leaves_a_run_that_can_start_again(
    straight: tuple[Path, TrainResult], hook: str
) -> None:
    stop = SignalAt(hook, epoch=0)
    stopped = train(config(straight[0]), callbacks=[stop], console=silent())
    assert stopped.stopped
    assert (stopped.epochs_done, stopped.batches_done) == (0, 0)
    console = silent()
    check_equal(resume(stopped.run_dir, console=console).run_dir, straight[1].run_dir)
    assert "has no checkpoint yet: the training starts again" in written(console)


def test_a_signal_before_the_first_batch_of_a_resumed_epoch_changes_nothing(
    straight: tuple[Path, TrainResult],
) -> None:
    stop = SignalAt("on_train_batch_end", 0)
    first = train(config(straight[0]), callbacks=[stop], console=silent())
    stop = SignalAt("on_fit_start", epoch=0)
    second = resume(first.run_dir, callbacks=[stop], console=silent())
    for result in (first, second):
        assert (result.stopped, result.epochs_done, result.batches_done) == (True, 1, 2)
    check_equal(resume(first.run_dir, console=silent()).run_dir, straight[1].run_dir)


@pytest.mark.parametrize("work", ["evaluate", "write_run_report"])
def test_a_signal_after_the_last_epoch_leaves_the_rest_to_resume(
    straight: tuple[Path, TrainResult], monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    original = getattr(run, work)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run, work, interrupted)
        stopped = train(config(straight[0]), console=silent())
    assert (stopped.stopped, stopped.epochs_done, stopped.report) == (True, 3, None)
    assert (stopped.evaluation is None) == (work == "evaluate")
    resumed = resume(stopped.run_dir, console=silent())
    assert not resumed.stopped
    assert (stopped.run_dir / "evaluation.json").is_file()
    assert resumed.report is not None
    assert resumed.report.stat().st_mtime >= (stopped.run_dir / "evaluation.json").stat().st_mtime
    check_equal(resumed.run_dir, straight[1].run_dir)


class Wait(Callback):
    """Wait, since signals in quick succession are one request."""

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_colors(tmp_path)
    signals = [SignalAt("on_train_batch_start", batch, epoch=0, number=number) for batch in (0, 1)]
    callbacks = [signals[0], Wait(), signals[1]]
    if number == signal.SIGTERM:
        result = train(tiny(tmp_path, accumulate=2), callbacks=callbacks, console=silent())
        assert (result.stopped, result.batches_done) == (True, 2)
        return
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path, accumulate=2), callbacks=callbacks, console=silent())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_closed_terminal_ends_no_request() -> None:
    def say(text: str) -> None:
        raise OSError("Input/output error")

    with StopRequest(say) as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM


def test_sighup_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(print) as request:
            signal.raise_signal(signal.SIGHUP)
            assert not request.is_received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_that_needs_no_end_is_interrupted() -> None:
    with StopRequest(print) as request:
        with request.interrupting():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the work continues")
        assert request.is_received


def test_no_other_thread_handles_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[Any] = []

    def work() -> None:
        with StopRequest(print):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_interruption_is_no_exception_that_broad_handlers_catch() -> None:
    assert not issubclass(StopNow, Exception)
