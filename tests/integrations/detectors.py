"""Helpers for the tests of Ultralytics' detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DEVICE = 0 if torch.cuda.is_available() else "cpu"


def small() -> dict[str, Any]:
    return {
        "imgsz": 64,
        "batch": 4,
        "workers": 0,
        "device": DEVICE,
        "plots": False,
        "verbose": False,
    }


def wake(model: Any) -> Any:
    """Set random norm statistics and scales, and switch to evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def maps(model: Any, x: Tensor) -> list[Tensor]:
    """Return the inputs of the detection head, before any decoding."""
    seen: list[Tensor] = []
    handle = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen
