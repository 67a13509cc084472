from __future__ import annotations

import json
import multiprocessing
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import nn

from convattn.models import create_model
from convattn.tasks.classification import (
    Classification,
    TrainConfig,
    TrainResult,
    load_config,
    train,
)
from tests.data.class_folders import write_broken
from tests.tasks.classification.runs import (
    STILL,
    rows,
    silent,
    tiny,
    weights,
    write_colors,
    written,
)


def test_the_run_folder_holds_everything(finished: tuple[Path, TrainResult]) -> None:
    run_dir = finished[1].run_dir
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    wanted = {"config.yaml", "environment.json", "metrics.csv", "evaluation.json"}
    wanted |= {"predictions.csv"}
    wanted |= {f"checkpoints/{n}.{e}" for n in ("best", "last") for e in ("ckpt", "safetensors")}
    assert wanted <= files
    assert any(name.startswith("tensorboard/events") for name in files)


def test_metrics_have_a_row_per_epoch(finished: tuple[Path, TrainResult]) -> None:
    found = rows(finished[1].run_dir)
    names = "epoch step lr train_loss train_acc val_loss val_top1 val_top5 images_per_second"
    assert list(found[0]) == names.split()
    assert [row["epoch"] for row in found] == ["1", "2"]
    assert [row["step"] for row in found] == ["3", "6"]
    assert all(float(row["images_per_second"]) > 0 for row in found)


def test_the_environment_tells_versions_machine_and_command(
    finished: tuple[Path, TrainResult],
) -> None:
    found = json.loads((finished[1].run_dir / "environment.json").read_text())
    assert found["torch"] == torch.__version__.split("+")[0]
    assert {"convattn", "python", "timm", "lightning", "platform", "processor"} <= set(found)
    assert len(found["starts"]) == 1
    assert "command" in found["starts"][0]


def test_the_evaluation_is_the_best_epochs_validation(finished: tuple[Path, TrainResult]) -> None:
    result = finished[1]
    assert result.evaluation is not None
    row = rows(result.run_dir)[result.best_epoch - 1]
    assert result.evaluation.top1 == pytest.approx(float(row["val_top1"]), abs=1e-6)
    assert result.evaluation.top5 == pytest.approx(float(row["val_top5"]), abs=1e-6)
    assert result.evaluation.loss == pytest.approx(float(row["val_loss"]), abs=1e-5)


def test_the_console_shows_the_run_and_a_line_per_epoch(tmp_path: Path) -> None:
    write_colors(tmp_path)
    console = silent()
    train(tiny(tmp_path, name="a"), console=console)
    lines = written(console).splitlines()
    assert lines[0].startswith("run       ")
    assert "test_vit, " in lines[1]
    assert lines[2].endswith(
        "2 classes, 24 images for training, 8 held out (25% of the images, split_seed=0)"
    )
    assert "2 epochs of 3 batches of 8 images, adamw, learning rate 0.001" in lines[3]
    assert lines[4] == "machine   accelerator=cpu, precision=32 (auto), threads=1, workers=0"
    assert lines[5] == "start     random weights, seed 0"
    assert [line.split()[0] for line in lines[-2:]] == ["1/2", "2/2"]
    assert "best" in lines[-2]


def test_the_console_marks_what_was_chosen(tmp_path: Path) -> None:
    write_colors(tmp_path)
    console = silent()
    changes = {"workers": None, "accelerator": "auto", "precision": "32"}
    train(tiny(tmp_path, epochs=1, **changes), console=console)
    (machine,) = (line for line in written(console).splitlines() if line.startswith("machine"))
    assert re.search(r"accelerator=\w+.* \(auto\), precision=32, ", machine)
    assert re.search(r"workers=\d+ \(auto\)$", machine)


def test_a_quiet_console_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_colors(tmp_path)
    train(tiny(tmp_path, epochs=1), console=Console(quiet=True))
    assert capfd.readouterr().out == ""


def test_threads_apply_to_the_final_evaluation(tmp_path: Path) -> None:
    write_colors(tmp_path)
    seen: set[int] = set()

    def note(*_: Any) -> None:
        if torch.is_inference_mode_enabled():
            seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        train(tiny(tmp_path, epochs=1, threads=1), console=silent())
        assert torch.get_num_threads() == 2
    finally:
        hook.remove()
        torch.set_num_threads(before)
    assert seen == {1}


class WatchPriority(Callback):
    """Note the priority of the loading processes, not of processes of other tests."""

    def __init__(self) -> None:
        self.before = set(multiprocessing.active_children())

    def on_train_batch_end(self, *_: Any) -> None:
        children = [p.pid for p in multiprocessing.active_children() if p not in self.before]
        self.found = {os.getpriority(os.PRIO_PROCESS, pid) for pid in children if pid}


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="the system has no priorities like Unix")
def test_loading_processes_leave_a_cpu_to_the_model(tmp_path: Path) -> None:
    write_colors(tmp_path)
    watch = WatchPriority()
    train(tiny(tmp_path, epochs=1, workers=1), callbacks=[watch], console=silent())
    assert min(watch.found) > os.getpriority(os.PRIO_PROCESS, 0)


class FailWhenSaving(Callback):
    """Die at the moment that the last checkpoint of an epoch would be written."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.saved = getattr(self, "saved", 0) + 1
        if self.saved == 2:
            raise OSError("the disk is full")


def test_no_last_checkpoint_without_the_best_one_that_it_names(tmp_path: Path) -> None:
    write_colors(tmp_path)
    with pytest.raises(OSError, match="the disk is full"):
        train(tiny(tmp_path, name="a"), callbacks=[FailWhenSaving()], console=silent())
    found = {path.name for path in (tmp_path / "runs" / "a" / "checkpoints").iterdir()}
    assert found - {"last.safetensors"} == {"best.ckpt", "best.safetensors"}


def test_the_accuracy_on_mixed_images_counts_the_larger_share() -> None:
    source = cast(Any, SimpleNamespace(num_classes=4))
    task = Classification(load_config("nano", {"ema": False}), source)

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one_hot = nn.functional.one_hot(labels, 4).float()
        return 0.2 * images + 0.8 * images.flip(0), 0.2 * one_hot + 0.8 * one_hot.flip(0)

    task.mixup = cast(Any, mix)
    labels = torch.arange(4)
    batch = {"image": torch.eye(4), "target": labels}
    step = task.losses(nn.Identity(), cast(Any, batch), 0)
    assert step.measures["acc"] == 1


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, epochs=1, name="mine")
    train(config, console=silent())
    with pytest.raises(FileExistsError, match=r"--resume .*runs/mine"):
        train(config, console=silent())


def test_runs_without_a_name_are_numbered(tmp_path: Path) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, epochs=1)
    names = [train(config, console=silent()).run_dir.name for _ in range(2)]
    assert names == ["test_vit-colors-1", "test_vit-colors-2"]


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(tmp_path: Path) -> None:
    write_colors(tmp_path)
    runs = [train(tiny(tmp_path, epochs=1, workers=w), console=silent()) for w in (0, 1)]
    first, second = (weights(run.run_dir) for run in runs)
    torch.testing.assert_close(first, second)


def test_broken_images_are_skipped_and_listed(tmp_path: Path) -> None:
    write_colors(tmp_path)
    bad = write_broken(tmp_path / "colors" / "red" / "bad.png")
    result = train(tiny(tmp_path, epochs=1, max_broken=0.1), console=silent())
    assert (result.run_dir / "broken_images.txt").read_text() == f"{bad}\n"


class BreakImages(Callback):
    """Damage training images after they were checked, as a failing disk does."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        images = trainer.datamodule.source.train  # type: ignore[attr-defined]
        for number in range(self.count):
            write_broken(Path(images.path(number)))


def test_an_image_that_breaks_while_training_is_skipped_and_listed(tmp_path: Path) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, epochs=1, max_broken=0.05)
    result = train(config, callbacks=[BreakImages(1)], console=silent())
    listed = (result.run_dir / "broken_images.txt").read_text().splitlines()
    assert listed == [result.source.train.path(0)]


def test_many_images_that_break_while_training_stop_it(tmp_path: Path) -> None:
    write_colors(tmp_path)
    with pytest.raises(ValueError, match=r"of 24 images in .* cannot be read"):
        train(tiny(tmp_path), callbacks=[BreakImages(8)], console=silent())


def test_training_starts_from_another_run(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_colors(tmp_path)
    (tmp_path / "colors" / "red").rename(tmp_path / "colors" / "scarlet")
    first = finished[1].run_dir
    config = tiny(tmp_path, epochs=1, init=str(first), weight_decay=0, **STILL)
    console = silent()
    result = train(config, console=console)
    assert re.search(r"start +.* loaded; the head is new: .* 'red'; .* 'scarlet'", written(console))
    before, after = weights(first, "best"), weights(result.run_dir)
    for key, value in before.items():
        if key.startswith("head."):  # other classes, another head
            assert not torch.allclose(after[key], value) or not value.any()
        else:
            torch.testing.assert_close(after[key], value, atol=1e-6, rtol=0)


def test_a_folders_name_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "a[/red]\x1b[2J"
    write_colors(folder)
    console = silent()
    train(tiny(folder, epochs=1), console=console)
    assert rf"data      folder:{tmp_path}/a[/red]\x1b[2J/colors, 2 classes" in written(console)


def test_starting_from_another_model_is_an_error(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, init=str(finished[1].run_dir), model="test_vit2")
    with pytest.raises(
        ValueError, match="holds the weights of test_vit, not of test_vit2; write model=test_vit"
    ):
        train(config, console=silent())


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2, "clip_grad": 1.0},
        {"loss": "bce", "cutmix": 1.0, "mixup_off_epoch": 1},
        {"opt": "momentum", "sched": "step", "decay_epochs": 1, "repeats": 2},
        {"channels_last": True, "precision": "bf16-mixed", "grad_checkpointing": True},
        {"in_chans": 1, "batch_size": 64, "model": "glnet_nano"},
    ],
    ids=["accumulate", "bce", "sgd", "bf16", "glnet"],
)
def test_other_settings_train_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_colors(tmp_path, count=8)
    result = train(tiny(tmp_path, **changes), console=silent())
    assert len(rows(result.run_dir)) == 2


def test_the_average_of_the_weights_is_what_is_kept(finished: tuple[Path, TrainResult]) -> None:
    run_dir = finished[1].run_dir
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    state = content["state_dict"]
    kept = weights(run_dir)
    for key, value in kept.items():
        torch.testing.assert_close(value, state[f"ema.module.{key}"], rtol=0, atol=0)
    assert any(not torch.equal(value, state[f"model.{key}"]) for key, value in kept.items())


def test_an_average_without_memory_is_the_model(tmp_path: Path) -> None:
    write_colors(tmp_path)
    result = train(tiny(tmp_path, epochs=1, ema=True, ema_decay=0), console=silent())
    content = torch.load(result.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    for key, value in weights(result.run_dir).items():
        torch.testing.assert_close(value, content["state_dict"][f"model.{key}"], rtol=0, atol=0)


def test_accumulation_updates_once_per_group(tmp_path: Path) -> None:
    write_colors(tmp_path)  # 24 images: 3 batches of 8, 2 updates
    result = train(tiny(tmp_path, accumulate=2), console=silent())
    assert [row["step"] for row in rows(result.run_dir)] == ["2", "4"]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    from tests.cli.command import convattn

    write_colors(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml_of(tiny(tmp_path)))
    done = convattn(tmp_path, "train", "--recipe", "tiny.yaml", "devices=2", "strategy=ddp")
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 1
    assert [row["step"] for row in rows(runs[0])] == ["1", "2"]
    found = json.loads((runs[0] / "evaluation.json").read_text())
    assert found["top1"] == pytest.approx(float(rows(runs[0])[-1]["val_top1"]), abs=0.2)


def yaml_of(config: TrainConfig) -> str:
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json", exclude={"name"}))


@pytest.mark.slow
def test_a_compiled_model_trains_and_its_checkpoint_loads(tmp_path: Path) -> None:
    write_colors(tmp_path)
    console = silent()
    result = train(tiny(tmp_path, compile=True, epochs=1), console=console)
    assert "compile   torch.compile compiles the model in the first batches" in written(console)
    plain = create_model("test_vit", img_size=32, num_classes=2)
    assert set(weights(result.run_dir)) == set(plain.state_dict())


@pytest.mark.slow
def test_the_digits_are_learnt_in_a_few_epochs(tmp_path: Path) -> None:
    config = load_config("digits", {"epochs": 8, "runs": str(tmp_path), "tensorboard": False})
    result = train(config, console=silent())
    assert result.evaluation is not None
    assert result.evaluation.top1 >= 0.97


def test_a_batch_of_one_image_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    write_colors(tmp_path)
    with pytest.raises(ValueError, match="set batch_size=2 or more"):
        train(tiny(tmp_path, model="test_resnet", batch_size=1), console=silent())
    assert not (tmp_path / "runs").exists()
