"""One training run on machines, disks and files that are not as expected."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from convattn.cli import main
from convattn.tasks.classification import load_checkpoint, resume, train
from convattn.tasks.table import write_report
from tests.data.class_folders import write_classes, write_image
from tests.tasks.classification.runs import silent, tiny, write_colors, written

pytestmark = pytest.mark.slow  # trainings of seconds each


def test_a_gpu_that_does_not_work_is_not_used_by_a_training_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_colors(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run = train(tiny(tmp_path, epochs=1, opt="momentum"), console=silent())
    assert run.evaluation is not None
    assert run.report is not None
    assert resume(run.run_dir, overrides={"epochs": 2}, console=silent()).evaluation is not None


def test_a_machine_without_git_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_colors(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")
    run = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    assert json.loads((run / "environment.json").read_text())["git_commit"] is None


def test_a_disk_without_modes_is_trained_on(tmp_path: Path) -> None:
    write_colors(tmp_path)
    refused = PermissionError(1, "Operation not permitted")
    with (
        mock.patch("pathlib.Path.chmod", side_effect=refused),
        mock.patch("os.chmod", side_effect=refused),
        mock.patch("os.fchmod", side_effect=refused),
    ):
        run = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    assert load_checkpoint(run).card.epoch == 1


def test_names_that_are_not_utf8_end_no_training(tmp_path: Path) -> None:
    colors = write_colors(tmp_path)
    red = os.fsencode(colors / "red")
    for name in os.listdir(red):
        os.rename(red + b"/" + name, red + b"/caf\xe9" + name)
    os.rename(red, os.fsencode(colors) + b"/ros\xe9")
    run = train(tiny(tmp_path, epochs=1), console=silent())
    assert run.evaluation.images == 8
    assert run.report is not None
    with (run.run_dir / "predictions.csv").open(newline="", errors="surrogateescape") as file:
        assert all(os.path.exists(row["path"]) for row in csv.DictReader(file))
    assert resume(run.run_dir, console=silent()).had_finished
    assert resume(run.run_dir, overrides={"epochs": 2}, console=silent()).evaluation.images == 8
    assert write_report(run.run_dir).is_file()


def test_what_only_describes_a_run_may_be_damaged(tmp_path: Path) -> None:
    write_colors(tmp_path)
    run = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    kernels = json.loads((run / "environment.json").read_text())["cpu_kernels"]
    assert load_checkpoint(run).card.kernels == kernels != ""
    names = {path for path in run.rglob("*") if path.is_file()}
    (run / "metrics.csv").write_text("epoxx,1\n")
    (run / "environment.json").write_text("{")
    for folder in (run, run / "checkpoints"):  # left by a start that was killed
        (folder / ".convattn-x.tmp").write_text("half")
    console = silent()
    assert resume(run, overrides={"epochs": 2}, console=console).epochs_done == 2
    lines = written(console).split("\n")
    for name in ("metrics.csv", "environment.json"):
        (line,) = [line for line in lines if f"{name}.damaged-1" in line]
        assert line.startswith("note ")
        names.add(run / f"{name}.damaged-1")
    assert {path for path in run.rglob("*") if path.is_file()} == names


def test_a_part_that_cannot_be_used_is_passed_over_with_a_note(tmp_path: Path) -> None:
    colors = write_classes(tmp_path / "colors" / "train", {"red": 8, "blue": 8}).parent
    write_image(colors / "test" / "1.png")  # without a class
    (colors / "val").mkdir()
    console = silent()
    run = train(tiny(tmp_path, epochs=1), console=console)
    assert run.evaluation.images == 4
    notes = [line for line in written(console).split("\n") if line.startswith("note ")]
    assert any("val is passed over" in note for note in notes)
    assert any("test is passed over" in note for note in notes)
    assert any("test is passed over" in note for note in run.evaluation.notes)


def test_a_recipe_leaves_out_a_rate_that_the_model_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"folder:{write_classes(tmp_path / 'colors', {'red': 4, 'blue': 4})}"
    words = ["from_scratch=true", "epochs=1", "img_size=64", "workers=0", "batch_size=3"]
    given: list[Any] = ["--recipe", "finetune", "--model", "densenet121", "--data", data, *words]
    assert main(["train", *given, "accelerator=cpu", f"runs={tmp_path / 'runs'}"]) == 0
    assert "is left out: densenet121 has no argument drop_path_rate" in capsys.readouterr().out


class Fail(Callback):
    """End the training with an error."""

    def on_train_batch_end(self, *_: object) -> None:
        raise RuntimeError("on purpose")


def test_a_training_leaves_the_generators_of_random_numbers_as_they_are(tmp_path: Path) -> None:
    write_colors(tmp_path)

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    pl.seed_everything(5, verbose=False)
    expected = [draw(), draw(), draw()]
    pl.seed_everything(5, verbose=False)
    found = [draw()]
    run = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    found.append(draw())
    with pytest.raises(RuntimeError, match="on purpose"):
        resume(run, overrides={"epochs": 2}, callbacks=[Fail()], console=silent())
    found.append(draw())
    assert found == expected
