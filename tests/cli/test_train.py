from __future__ import annotations

import io
import signal
import sys
import time
from pathlib import Path

import pytest

from convattn.cli import main
from tests.cli.command import convattn, start
from tests.data.class_folders import write_classes


def test_a_run_ends_with_the_next_commands(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(work / "tiny.yaml")
    assert main(["train", "epochs=1", "--recipe", recipe, "lr=1e-3", "--name", "next"]) == 0
    out = capsys.readouterr().out
    run_dir = work / "runs" / "next"
    for line in (
        f"weights   {run_dir}/checkpoints/best.safetensors",
        f"report    {run_dir}/report.html",
        f"  convattn eval {run_dir}",
        f"  convattn predict {run_dir} IMAGE_OR_FOLDER",
    ):
        assert line in out
    assert "top-1 (" in out


def test_a_finished_run_repeats_the_settings_that_the_user_gave(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    words = ["--resume", "runs/run", "epochs=2", "min_lr=0", "lr=1e-4", "warmup_lr=0"]
    assert main(["train", *words]) == 0
    told = capsys.readouterr().out
    assert "  convattn train --resume runs/run min_lr=0 lr=1e-4 warmup_lr=0 epochs=12\n" in told


def test_the_report_and_the_curves_are_written(work: Path) -> None:
    for name in ("report.html", "curves.png"):
        assert (work / "runs" / "run" / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "glnet_nanno"], "unknown model 'glnet_nanno'; did you mean 'glnet_nano'"),
        (["epoch=3"], "unknown setting 'epoch'; did you mean 'epochs'"),
        (["epochs=x"], "epochs=x: must be a valid integer"),
        (["--recipe", "digit"], "unknown recipe 'digit'; did you mean 'digits'"),
        (["--data", "folder:/no/where"], "there is no folder /no/where"),
        (["--data", "cifar"], "unknown data 'cifar'"),
        (["opt=adm"], "unknown optimiser 'adm'; did you mean 'adam'"),
        (["model_args.slotz=3"], "no argument 'slotz'; did you mean 'slots'"),
        (["--model", "test_vit", "img_size=33"], "test_vit does not support images of 1x33x33"),
        (["auto_augment=foo"], "timm has no policy auto_augment=foo"),
        (["auto_augment=rand-m9x"], "timm has no policy auto_augment=rand-m9x"),
        (["batch_size=1", "mixup=0.2"], "mix two images of a batch, got batch_size=1"),
        (["pretrained=true"], "can be downloaded: write init=RUN_OR_CHECKPOINT in place of"),
        (["model_args.depths=3"], "model_args.depths=3 does not fit glnet_nano: "),
        (["opt=adahessian"], "opt=adahessian needs second derivatives"),
        (["ema_decay=1"], "ema_decay=1: must be less than 1"),
        (["batch_size=1_000"], "batch_size=1_000: must be a number"),
        (["--recipes", "foo=3"], "--recipes only prints a list: leave foo=3 out"),
        (["--settings", "--model", "x"], "--settings only prints a list: leave --model out"),
        (["--settings", "--recipes"], "--settings only prints a list: leave --recipes out"),
        (["--resume", "gone"], "there is no checkpoint or run folder gone"),
        (["--resume", "gone", "--recipe", "nano"], "leave --recipe out"),
        (["accelerator=tpu"], "accelerator=tpu is not possible here: this machine has "),
        (["accelerator=abacus"], "; write accelerator="),
        (["accelerator=cpu", "devices=0"], "devices=0 is not possible with accelerator=cpu"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    err = capsys.readouterr().err
    assert message.lower() in err.lower()
    assert err.startswith("convattn: ")
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="/sys is a read-only place of Linux")
@pytest.mark.parametrize(
    ("folder", "words"),
    [("/sys/kernel", []), (".", ["runs=/sys/kernel/x"]), (".", ["runs=/dev/null"])],
)
def test_a_folder_that_cannot_be_written_names_the_setting(
    folder: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["train", *words]) == 2
    assert "choose another folder with runs=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_training_prints_names_in_every_encoding(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "\u6570", {"\u732b": 8, "d\u00f6g": 8})
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.chdir(tmp_path)
    words = ["--data", "folder:\u6570", "--model", "test_vit", "--name", "a b\u732b"]
    settings = ["epochs=1", "img_size=32", "workers=0", "batch_size=4", "tensorboard=false"]
    assert main(["train", *words, *settings, "accelerator=cpu"]) == 0
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert r"\u6570" in text
    assert r"convattn eval 'runs/a b\u732b'" in text


def test_settings_and_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--settings"]) == 0
    assert "  lr=0.001\n      learning rate\n" in capsys.readouterr().out
    assert main(["train", "--recipes"]) == 0
    recipes = capsys.readouterr().out.split()
    assert recipes[:4] == ["acmix_pvt", "acmix_resnet", "acmix_swin", "digits"]


@pytest.mark.slow
def test_ctrl_c_stops_a_run_and_resume_continues_it(work: Path, tmp_path: Path) -> None:
    words = ("--recipe", str(work / "tiny.yaml"), "epochs=200", f"runs={tmp_path}", "name=long")
    process = start(tmp_path, "train", *words)
    metrics = tmp_path / "long" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert f"convattn train --resume {tmp_path}/long" in out
    done = len(metrics.read_text().splitlines()) - 1
    resumed = convattn(tmp_path, "train", "--resume", "long", f"epochs={done + 2}")
    assert resumed.returncode == 0, resumed.stderr
    assert len(metrics.read_text().splitlines()) - 1 == done + 2
