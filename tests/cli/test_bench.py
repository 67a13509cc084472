from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from convattn.bench import models
from convattn.bench.models import Setting, build_model, check_device, model_case
from convattn.cli import main
from convattn.models import count_macs, count_parameters, create_model

SHORT = ("--rounds", "2", "--batch", "2", "--seconds", "1", "--together")
SMALL = Setting(size=(32, 32), batch=2)


def test_a_model_is_measured_with_others(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "glnet_nano", "--against", "acmix_resnet_nano", *SHORT]
    assert main(words) == 0
    heading, head, first, second = capsys.readouterr().out.splitlines()
    assert heading.startswith("evaluation, deployed form, 2 images of 32x32, float32, 1 thread of ")
    assert heading.endswith(", 2 rounds")
    assert head.split()[:2] == ["images/s", "quartiles"]
    assert head.endswith("glnet_nano against it")
    assert first.split()[0] == "glnet_nano"
    assert first.split()[-1] in ("KiB", "MiB")
    assert second.split()[0] == "acmix_resnet_nano"
    assert second.endswith(")")


def test_json_has_every_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    assert main(["bench", "glnet_nano", *SHORT, "--size", "48x32", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert {"machine", "versions", "settings", "command", "groups"} <= set(found)
    assert found["command"].startswith("convattn bench glnet_nano --device cpu --dtype float32")
    assert " --together " in found["command"]
    (group,) = found["groups"]
    assert group["settings"]["processes"] == "one"
    assert group["settings"]["size"] == [48, 32]
    assert (group["settings"]["batch"], group["settings"]["form"]) == (2, "deployed")
    run = group["runs"]["glnet_nano"]
    assert len(run["seconds"]) == 2
    assert run["macs"] == 2 * count_macs("glnet_nano", (3, 48, 32))
    assert run["parameters"] == count_parameters("glnet_nano")
    assert run["memory_bytes"] > 0


def test_json_is_printed_without_other_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "glnet_nano", *SHORT, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["script"] == "bench"


def test_results_without_kernels_refer_to_the_doctor(capsys, monkeypatch) -> None:
    monkeypatch.setattr("convattn.bench.machine.available", lambda: False)
    words = ["--rounds", "1", "--batch", "1", "--seconds", "0.1", "--together"]
    assert main(["bench", "glnet_nano", *words]) == 0
    heading = capsys.readouterr().out.splitlines()[0]
    assert ", without C kernels (`convattn doctor` says why), " in heading


@pytest.mark.slow
def test_each_model_is_measured_in_its_own_process(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("convattn")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "convattn"]
    names = ["glnet_nano", "--against", "acmix_resnet_nano", *SHORT[:-1]]
    words = [*start, "bench", *names, "--train", "--dtype", "bfloat16", "--json", "-"]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    (group,) = document["groups"]
    assert group["settings"]["processes"] == "one each"
    assert list(group["runs"]) == ["glnet_nano", "acmix_resnet_nano"]
    assert "--apart" not in document["command"]


@pytest.mark.slow
def test_a_training_step_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "acmix_resnet_nano", "--train", "--dtype", "bfloat16", *SHORT]
    assert main([*words, "--json", "-"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["settings"]["mode"] == "training step"
    assert group["settings"]["optimizer"] == "AdamW, fused"
    run = group["runs"]["acmix_resnet_nano"]
    assert run["macs"] == 3 * 2 * count_macs("acmix_resnet_nano")
    # Gradients are as large as the weights, and the step needs them.
    assert run["memory_bytes"] > 4 * count_parameters("acmix_resnet_nano")


def test_a_training_step_changes_every_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("glnet_nano", (32, 32))
    monkeypatch.setattr(models, "build_model", lambda name, size: model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    call = model_case("glnet_nano", Setting(size=(32, 32), batch=4, train=True)).build().call
    call()
    same = [name for name, p in model.named_parameters() if p.equal(before[name])]
    assert same == []
    assert all(p.grad is None for p in model.parameters())


def test_evaluation_uses_the_deployed_form_without_as_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folded = model_case("acmix_resnet_nano", SMALL)
    assert main(["bench", "acmix_resnet_nano", *SHORT, "--as-trained"]) == 0
    assert "evaluation, trained form, " in capsys.readouterr().out
    built = folded.build()
    assert callable(folded.macs)
    assert built.macs not in (None, folded.macs())  # the two layers of a path have become one


@pytest.mark.slow
def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    assert main(["bench", "glnet_nano", *SHORT, "--plot", str(path)]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_models_of_timm_get_another_size() -> None:
    model = build_model("deit_tiny_patch16_224", (64, 64))
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_a_size_that_a_model_does_not_support_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Any = create_model

    def fixed(name: str, **arguments: Any) -> torch.nn.Module:
        if arguments:
            raise TypeError("unexpected keyword argument 'img_size'")
        return build(name)

    monkeypatch.setattr(models, "create_model", fixed)
    with pytest.raises(ValueError, match="takes images of 224x224 pixels only, got 96x96"):
        build_model("deit_tiny_patch16_224", (96, 96))


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "*net_nano"]) == 0
    assert "glnet_nano" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a model: convattn bench glnet_stl"),
        (["glnet_nanno"], "unknown model 'glnet_nanno'; did you mean 'glnet_nano'?"),
        (["glnet_nano", "--against", "resnet_50"], "unknown model 'resnet_50'; did you mean"),
        (["glnet_nano", "--against", "glnet_nano"], "that is the model itself; name another"),
        (
            ["glnet_nano", "resnet18"],
            "takes no argument 'resnet18': other models stand after --agai",
        ),
        (["glnet_nano", "--device", "gpu"], "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (["glnet_nano", "--dtype", "half"], "--dtype must be one of float32, bfloat16, float16"),
        (["glnet_nano", "--train", "--dtype", "float16"], "use --dtype bfloat16"),
        (["glnet_nano", "--train", "--as-trained"], "leave out --as-trained"),
        (["glnet_nano", "--size", "32x"], "--size must be pixels such as 192 or 192x256"),
        (["glnet_nano", "--rounds", "0"], "--rounds must be positive, got 0"),
        (["glnet_nano", "--plot", "a.jpg"], "must end in .png or .svg"),
        (["glnet_nano", "--json", "no/such/a.json"], "there is no folder no/such"),
        (["glnet_nano", "--rouns", "1"], "no option --rouns; did you mean --rounds?"),
        (["--list", "nothing*"], "no model matches 'nothing*'"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU here; use 'cpu'; `convattn doctor` shows"):
        check_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert check_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="there are 2 GPUs, numbered from 0"):
        check_device("cuda:2")


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "glnet_nano", "--plot", "a.png"]) == 2
    assert "pip install 'convattn[train]'" in capsys.readouterr().err
