from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convattn.training.config import RunConfig
from convattn.training.precision import precision_notes, resolve_precision
from convattn.training.trainer import make_trainer


def config(**values: str) -> RunConfig:
    return RunConfig(model="resnet18", data="digits", **values)  # type: ignore[arg-type]


def set_gpu(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    """Pretend that PyTorch has a GPU of this compute capability, and can emulate bfloat16 on it."""
    properties = SimpleNamespace(major=major, minor=minor)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)


@pytest.mark.parametrize(
    ("capability", "accelerator", "precision"),
    [
        ((7, 5), "auto", "32-true"),
        ((8, 0), "auto", "bf16-mixed"),
        ((9, 0), "CUDA", "bf16-mixed"),
        ((9, 0), "Gpu", "bf16-mixed"),
        ((9, 0), "cpu", "32-true"),
    ],
)
def test_auto_is_bfloat16_where_the_gpu_computes_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], accelerator: str, precision: str
) -> None:
    set_gpu(monkeypatch, *capability)
    assert resolve_precision(config(accelerator=accelerator)) == precision


def test_auto_is_32_bits_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision(config()) == "32-true"


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_16_mixed_is_bf16_mixed_on_a_cpu_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    on_cpu = config(accelerator=accelerator, precision="16-mixed")
    assert resolve_precision(on_cpu) == "bf16-mixed"
    [note] = precision_notes(on_cpu)
    assert note.startswith("precision=16-mixed is bf16-mixed on a CPU")
    assert precision_notes(config(accelerator=accelerator, precision="bf16-mixed")) == []


def test_16_mixed_is_used_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpu(monkeypatch, 7, 5)
    assert resolve_precision(config(precision="16-mixed")) == "16-mixed"
    assert precision_notes(config(precision="16-mixed")) == []


@pytest.mark.parametrize(
    ("given", "precision"),
    [("32", "32-true"), ("64", "64-true"), ("bf16-mixed", "bf16-mixed")],
)
def test_a_precision_that_was_given_is_used(given: str, precision: str) -> None:
    assert resolve_precision(config(precision=given)) == precision


def test_bf16_true_rounds_images_and_not_targets(tmp_path: Path) -> None:
    trainer = make_trainer(config(accelerator="cpu", precision="bf16-true"), tmp_path)
    boxes = torch.tensor([[500.3, 10.1, 501.7, 20.2]])
    batch = {"image": torch.rand(1, 3, 4, 4), "target": [{"boxes": boxes}]}
    found = trainer.precision_plugin.convert_input(batch)
    assert found["image"].dtype == torch.bfloat16
    assert torch.equal(found["target"][0]["boxes"], boxes)
    layer = trainer.precision_plugin.convert_module(torch.nn.Linear(2, 2))
    assert layer.weight.dtype == torch.bfloat16
