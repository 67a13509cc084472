"""Deployed forms compute what the trained ones do, on the smallest model of every family."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import LayerScale2d
from timm.utils import reparameterize_model
from torch import nn

import convattn
from convattn import ACmix, XVolution
from convattn.layers import ConvMlp
from convattn.layers.block import PreNormBlock
from convattn.ops.acmix import folding_pays
from tests.golden import relative_error
from tests.layers.properties import randomise

NANO = convattn.list_models("*nano*")
SCALED = ["glnet_nano", "glnet_nano_conv", "glnet_nano_attn"]

every_model = pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, {}) for name in NANO] + [(name, {"layer_scale": 0.1}) for name in SCALED],
)


def trained(name: str, arguments: dict[str, Any]) -> Any:
    """Norm statistics, scales and factors are random: nothing is hidden by a zero or a one."""
    model = convattn.create_model(name, num_classes=5, **arguments)
    return randomise(model).double().eval()


@every_model
def test_the_deployed_form_computes_the_same(name, arguments):
    model = trained(name, arguments)
    before = copy.deepcopy(model.state_dict())
    deployed = reparameterize_model(model)
    again = reparameterize_model(deployed)
    for size in [(64, 64), (33, 47)]:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        assert relative_error(deployed(x), model(x)) < 1e-10
        assert relative_error(again(x), model(x)) < 1e-10
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@every_model
def test_the_deployed_form_has_nothing_left_to_fold(name, arguments):
    deployed = reparameterize_model(trained(name, arguments))
    for module in deployed.modules():
        if isinstance(module, XVolution):
            assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        if isinstance(module, ACmix):
            assert not isinstance(module.alpha, nn.Parameter)
            assert not isinstance(module.beta, nn.Parameter)
            groups = module.attn.groups
            pays = folding_pays(sum(groups), groups[2], module.kernel_size, module.attn.stride)
            assert (module.fc is None) == (pays or module.mix == "attention")
        if isinstance(module, PreNormBlock | ConvMlp):
            assert module.folded
            assert not any(isinstance(m, LayerScale2d) for m in module.children())


@every_model
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_the_deployed_form_is_copied_pickled_and_scripted(name, arguments):
    deployed = reparameterize_model(trained(name, arguments))
    x = torch.randn(1, 3, 48, 32, dtype=torch.float64)
    y = deployed(x)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other(x), y)
    assert relative_error(torch.jit.script(deployed)(x), y) < 1e-10


@pytest.mark.parametrize("name", NANO)
def test_the_deployed_form_is_made_without_weights_too(name):
    deployed = reparameterize_model(convattn.create_model(name, num_classes=5, device="meta"))
    assert deployed.eval()(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 5)
