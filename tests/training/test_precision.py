from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from convattn.training.config import RunConfig
from convattn.training.precision import resolve_precision


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


@pytest.mark.parametrize(
    ("given", "precision"),
    [("32", "32-true"), ("64", "64-true"), ("bf16-mixed", "bf16-mixed"), ("16-mixed", "16-mixed")],
)
def test_a_precision_that_was_given_is_used(given: str, precision: str) -> None:
    assert resolve_precision(config(precision=given)) == precision
