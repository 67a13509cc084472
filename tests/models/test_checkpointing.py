from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import convattn  # noqa: F401  # registers the models
from convattn import ops


@pytest.mark.parametrize("network", ["glnet_nano", "acmix_pvt_nano"])
def test_recomputed_activations_take_the_paths_of_the_forward_pass(network):
    model: Any = timm.create_model(network).train()
    model.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    with ops.use_backend("reference"):
        y = model(x).sum()
    with ops.record_paths() as taken:
        y.backward()
    assert taken
    assert {choice.path for choice in taken} == {"reference"}
