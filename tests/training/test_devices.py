from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from convattn.training.config import RunConfig
from convattn.training.devices import device_error


def message(monkeypatch: pytest.MonkeyPatch, **values: Any) -> str:
    """Return the message for what Lightning raises, on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = RunConfig(model="resnet18", data="digits", **values)
    keys = ("accelerator", "devices", "strategy")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        pl.Trainer(**{key: getattr(config, key) for key in keys}, logger=False)
    return device_error(config, caught.value)


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps", "tpu", "abacus"])
def test_an_accelerator_that_is_not_there_is_named_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert message(monkeypatch, accelerator=name) == (
        f"accelerator={name} is not possible here: this machine has cpu; write accelerator=cpu or "
        "accelerator=auto (`convattn doctor` shows the devices)"
    )


@pytest.mark.parametrize("devices", [0, -1, "0,1", "two"])
def test_devices_that_are_not_there_are_named_with_a_number_that_works(
    monkeypatch: pytest.MonkeyPatch, devices: int | str
) -> None:
    told = message(monkeypatch, accelerator="cpu", devices=devices)
    assert told.startswith(f"devices={devices} is not possible with accelerator=cpu: ")
    assert "; write devices=1, or devices=auto" in told
    assert ".;" not in told
    assert ". ;" not in told


@pytest.mark.parametrize("name", ["fsdp", "foo"])
def test_a_strategy_that_is_not_possible_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    told = message(monkeypatch, accelerator="cpu", strategy=name)
    assert told.startswith(f"strategy={name} is not possible here: ")
    assert told.endswith("; write strategy=auto")


def test_the_number_of_gpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = RunConfig(model="resnet18", data="digits", accelerator="gpu", devices=9)
    told = device_error(config, ValueError("You requested gpu: [8]. But there are [0, 1, 2, 3]."))
    assert "write a number from devices=1 to devices=4, or devices=auto" in told
    assert "accelerator=gpu" in told
