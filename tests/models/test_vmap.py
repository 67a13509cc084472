"""`torch.func.vmap` over images and over networks, in evaluation without gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

import convattn
from tests.compare import assert_close
from tests.models.test_contract import BASELINES

NAMES = [name for name in convattn.list_models("*_nano") if name not in BASELINES]

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.fixture(params=[False, True], ids=["trained", "deployed"])
def networks(request, name) -> list[Any]:
    models = [convattn.create_model(name).eval() for _ in range(2)]
    return [convattn.reparameterize(m) for m in models] if request.param else models


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_vmap_over_images_and_over_networks(networks):
    images = torch.rand(2, 1, 3, 32, 32)
    expected = torch.stack([networks[0](image) for image in images])
    assert_close(vmap(networks[0])(images), expected, torch.float32)
    assert_close(vmap(networks[0], chunk_size=1)(images), expected, torch.float32)

    base = copy.deepcopy(networks[0]).to("meta")

    def call(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    state = stack_module_state(networks)
    shared = vmap(call, in_dims=(0, 0, None))(*state, images[0])
    assert_close(shared, torch.stack([m(images[0]) for m in networks]), torch.float32)
    each = vmap(call)(*state, images)
    assert_close(
        each, torch.stack([m(x) for m, x in zip(networks, images, strict=True)]), torch.float32
    )
