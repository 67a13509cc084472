"""The engine knows no classification: another task is trained, resumed, evaluated and reported."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from convattn.training.evaluate import evaluate
from convattn.training.report import write_run_report
from convattn.training.run import TrainResult, resume, train
from convattn.training.start import task_of
from convattn.training.trained import load_trained
from tests.tasks.classification.runs import rows, silent, timeless, weights, written
from tests.training.toy_task import Brightness, BrightnessEvaluation, brightness, write_grey


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, str]:
    """A folder, a finished run, and what it printed."""
    torch.set_num_threads(1)
    folder, console = tmp_path_factory.mktemp("toy"), silent()
    write_grey(folder)
    return (
        folder,
        train(Brightness, brightness(folder, name="run"), console=console),
        written(console),
    )


class Stop(Callback):
    """Ask for a stop in the second epoch."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            signal.raise_signal(signal.SIGINT)


def test_metrics_have_the_columns_of_the_task(finished: tuple[Path, TrainResult, str]) -> None:
    found = rows(finished[1].run_dir)
    names = "epoch step lr train_fit train_bias val_error images_per_second"
    assert list(found[0]) == names.split()
    assert len(found) == 3


def test_the_best_epoch_is_the_one_with_the_least_error(tmp_path: Path) -> None:
    write_grey(tmp_path)

    class Worse(Callback):
        """Move the weights away from the optimum after the second epoch."""

        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    pl_module.get_parameter("model.head.bias").add_(10)

    run = train(Brightness, brightness(tmp_path), callbacks=[Worse()], console=silent())
    errors = [float(row["val_error"]) for row in rows(run.run_dir)]
    assert run.best_epoch == 1 + errors.index(min(errors)) < 3
    assert run.evaluation.error == pytest.approx(min(errors), rel=1e-4)
    assert run.evaluation.epoch == run.best_epoch


def test_the_console_speaks_of_no_classes(finished: tuple[Path, TrainResult, str]) -> None:
    told = finished[2]
    assert "12 images for training, 4 held out (25% of the images" in told
    assert "class" not in told
    assert "fit" in told
    assert told.count("best") >= 1


def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path: Path, finished: tuple[Path, TrainResult, str]
) -> None:
    folder, straight, _ = finished
    config = brightness(folder, runs=str(tmp_path))
    stopped = train(Brightness, config, callbacks=[Stop()], console=silent())
    assert (stopped.stopped, stopped.epochs_done, stopped.batches_done) == (True, 1, 2)
    assert task_of(stopped.run_dir) == "brightness"
    resumed = resume(Brightness, stopped.run_dir, console=silent())
    assert timeless(resumed.run_dir) == timeless(straight.run_dir)
    for key, value in weights(straight.run_dir).items():
        torch.testing.assert_close(weights(resumed.run_dir)[key], value, rtol=0, atol=0)
    assert resume(Brightness, resumed.run_dir, console=silent()).had_finished
    with pytest.raises(ValueError, match="power cannot change in a resumed run"):
        resume(Brightness, resumed.run_dir, overrides={"power": 2})


def test_a_run_whose_best_weights_are_gone_goes_on(
    tmp_path: Path, finished: tuple[Path, TrainResult, str]
) -> None:
    run = Path(shutil.copytree(finished[1].run_dir, tmp_path / "run"))
    for path in (run / "checkpoints").glob("best.*"):
        path.unlink()
    console = silent()
    longer = resume(
        Brightness, run, overrides={"epochs": 4, "lr": 1e-5, "min_lr": 0}, console=console
    )
    assert longer.best_epoch == longer.evaluation.epoch == 4
    assert "best.safetensors is missing" in written(console)


def test_a_part_of_an_epoch_that_no_longer_exists_is_refused(tmp_path: Path) -> None:
    write_grey(tmp_path)
    run = train(Brightness, brightness(tmp_path), callbacks=[Stop()], console=silent()).run_dir
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in json.loads((run / "data.json").read_text())["train_files"][:5]:
        (tmp_path / "grey" / name).unlink()
    with pytest.raises(ValueError, match=r"stopped after 2 batches .* now has 1.*best\.ckpt"):
        resume(Brightness, run, console=silent())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert resume(Brightness, run / "checkpoints" / "best.ckpt", console=silent()).epochs_done == 3


def test_a_trained_model_is_evaluated_on_any_folders(
    tmp_path: Path, finished: tuple[Path, TrainResult, str]
) -> None:
    _, result, _ = finished
    loaded = load_trained(Brightness, result.run_dir)
    again = evaluate(Brightness, loaded)
    assert isinstance(again, BrightnessEvaluation)
    assert (again.split, again.images) == ("val", 4)
    assert again.to_dict() | {"images_per_second": 0} == result.evaluation.to_dict() | {
        "images_per_second": 0
    }
    other = write_grey(tmp_path, 6)
    (other / "even").rename(other / "another name")
    found = evaluate(Brightness, loaded, f"folder:{other}")
    assert (found.split, found.images) == ("all", 6)
    assert json.loads((result.run_dir / "evaluation.json").read_text())["error"] == again.error


def test_the_report_has_the_numbers_of_the_task(finished: tuple[Path, TrainResult, str]) -> None:
    run_dir = finished[1].run_dir
    page = write_run_report(Brightness, run_dir).read_text()
    error = finished[1].evaluation.error
    assert f"{error:.4f}" in page
    assert f"{error:.2%}" not in page
    assert "damaged" not in page
    assert "This page has no" not in page
    assert 'id="confusion"' not in page
    assert "classified" not in page


def test_a_run_in_updates_has_epochs_of_equal_length(tmp_path: Path) -> None:
    write_grey(tmp_path)  # 12 images to learn from, 3 batches
    config = brightness(tmp_path, steps=8, name="updates")
    console = silent()
    result = train(Brightness, config, console=console)
    assert [row["step"] for row in rows(result.run_dir)] == ["3", "6", "9"]
    assert "training  9 updates in 3 epochs of 3 batches of 4 images" in written(console)
    short = train(Brightness, brightness(tmp_path, steps=4, name="short"), console=silent())
    assert [row["step"] for row in rows(short.run_dir)] == ["2", "4"]


def test_a_run_in_updates_that_is_stopped_continues_to_the_same_result(tmp_path: Path) -> None:
    write_grey(tmp_path)
    changes = {"steps": 4, "warmup_steps": 2, "epochs": 100}
    whole = train(Brightness, brightness(tmp_path, name="whole", **changes), console=silent())
    config = brightness(tmp_path, name="stopped", **changes)
    stopped = train(Brightness, config, callbacks=[Stop()], console=silent())
    assert stopped.stopped
    again = resume(Brightness, stopped.run_dir, console=silent())
    assert timeless(again.run_dir) == timeless(whole.run_dir)
    for name, value in weights(whole.run_dir).items():
        assert torch.equal(weights(again.run_dir)[name], value)
    finished = resume(Brightness, stopped.run_dir, console=silent())
    assert finished.had_finished


def test_the_number_of_updates_of_a_run_cannot_change(
    finished: tuple[Path, TrainResult, str],
) -> None:
    with pytest.raises(ValueError, match="steps cannot change in a resumed run"):
        resume(Brightness, finished[1].run_dir, overrides={"steps": 20}, console=silent())
