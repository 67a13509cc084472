"""A training whose loss or weights become NaN ends, and keeps the last epoch that was finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torchmetrics import MeanMetric

from convattn.cli import main
from convattn.runs.weights import read_ckpt
from convattn.tasks.classification import load_checkpoint, resume, train
from convattn.training.module import TaskModule, TrainingDivergedError
from tests.tasks.classification.runs import STILL, rows, silent, tiny, weights, write_colors


class Fill(Callback):
    """Fill the bias of the head with a value, in the second epoch."""

    def __init__(self, value: float, *, average_too: bool = True) -> None:
        self.value = value
        self.average_too = average_too

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        models = [pl_module.model, *([pl_module.evaluated] if self.average_too else [])]
        if trainer.current_epoch == 1:
            for model in models:
                with torch.no_grad():
                    model.get_parameter("head.bias").fill_(self.value)


class Scale(Callback):
    """Make the weights of the head so large that the loss of the validation is NaN."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TaskModule)
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.model.get_parameter("head.weight").mul_(1e38).mul_(1e38)
                pl_module.model.get_parameter("head.weight").clamp_(-3e38, 3e38)


@pytest.mark.parametrize(
    ("callback", "ema", "told"),
    [
        (Fill(float("nan")), False, r"the weight head\.bias became NaN or infinite in epoch 2"),
        (
            Fill(float("inf"), average_too=False),
            True,
            r"head\.bias became NaN or infinite in epoch 2",
        ),
        (Scale(), False, r"the loss became (nan|inf) in the validation of epoch 2"),
    ],
)
def test_what_is_not_finite_is_never_saved(
    tmp_path: Path, callback: Callback, ema: bool, told: str
) -> None:
    write_colors(tmp_path)
    config = tiny(tmp_path, name="run", epochs=3, ema=ema, **STILL)
    with pytest.raises(TrainingDivergedError, match=told):
        train(config, callbacks=[callback], console=silent())
    run = tmp_path / "runs" / "run"
    assert [row["epoch"] for row in rows(run)] == ["1"]
    for name in ("best", "last"):
        assert all(value.isfinite().all() for value in weights(run, name).values())
        assert read_ckpt(run / "checkpoints" / f"{name}.ckpt")["convattn"]["epochs_done"] == 1
    assert load_checkpoint(run).card.epoch == 1
    assert resume(run, console=silent()).epochs_done == 3


def test_metrics_are_not_rounded_to_the_precision_of_the_weights(tmp_path: Path) -> None:
    write_colors(tmp_path, 20)
    run = train(tiny(tmp_path, epochs=1, precision="bf16-true", ema=True), console=silent())
    [row] = rows(run.run_dir)
    for name, images in (("val_top1", 10), ("train_acc", 24)):
        right = float(row[name]) * images
        assert right == pytest.approx(round(right), abs=1e-4), name
    loss = torch.tensor(float(row["val_loss"]))
    assert loss.bfloat16().float() != loss


@pytest.mark.parametrize(("lr", "advice"), [(1e30, "lr=0.0001"), (8.0, "lr=2")])
def test_a_loss_that_is_nan_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lr: float, advice: str
) -> None:
    words: dict[str, Any] = {"lr": lr, "opt": "momentum", "clip_grad": "null", "epochs": 1}
    words |= {"model": "test_vit", "img_size": 32, "workers": 0, "accelerator": "cpu"}
    words |= {"warmup_epochs": 0, "lr_batch": 1 if lr < 1e9 else "null", "batch_size": 8}
    words |= {"weight_decay": 1e8 if lr < 1e9 else 0}
    data = f"folder:{write_colors(tmp_path)}"
    given = [f"{key}={value}" for key, value in words.items()]
    assert main(["train", "--data", data, f"runs={tmp_path / 'runs'}", *given]) == 2
    told = capsys.readouterr().err
    assert "in epoch 1" in told
    assert f"Try a lower lr ({advice})" in told


def test_a_checkpoint_of_convattn_0_1_keeps_the_accuracy_of_its_epoch() -> None:
    counts = {"tp": 3, "fp": 1, "tn": 0, "fn": 1}  # of torchmetrics' micro accuracy
    state = {f"train_acc.{key}": torch.tensor(value) for key, value in counts.items()}
    found: dict[str, torch.Tensor] = {**state, "model.weight": torch.ones(1)}
    checkpoint = {"state_dict": found, "lr_schedulers": [{"a": 1}]}
    TaskModule.on_load_checkpoint(cast(TaskModule, None), checkpoint)
    assert set(found) == {"train_acc.mean_value", "train_acc.weight", "model.weight"}
    metric = MeanMetric()
    metric.persistent(True)
    metric.load_state_dict({key: found[f"train_acc.{key}"] for key in ("mean_value", "weight")})
    metric.update(1.0, weight=4)  # the rest of the epoch
    assert metric.compute() == (3 + 4) / 8
