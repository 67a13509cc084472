"""Models in evaluation with random norms, so that an error in a norm changes the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import convattn


@pytest.fixture
def build() -> Callable[..., Any]:
    def _build(name: str, **arguments: Any) -> Any:
        torch.manual_seed(1)
        model = convattn.create_model(name, **arguments)
        generator = torch.Generator().manual_seed(2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight.data, module.running_var):
                    assert values is not None
                    values.copy_(0.5 + torch.rand(values.shape, generator=generator))
        return model.eval()

    return _build
