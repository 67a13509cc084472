"""Layers that keep a trained convolution load the state dict of the network as it was before."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import convattn
from tests.layers.properties import randomise
from tests.test_surgery import every_operator, narrow_resnet, narrow_timm_resnet, small

pytestmark = pytest.mark.filterwarnings("ignore:the state dict was saved before")

WHERE = "layer[34].*.conv2"
OWN = ("op.", "gamma", "q_proj.", "k_proj.", "v_proj.", "weighting.", "attn_norm.")


def changed(operator: str) -> Any:
    model = narrow_resnet().eval()
    convattn.replace(model, operator, where=WHERE, keep=True)
    return model


@every_operator
@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_state_dict_from_before_is_loaded_into_the_convolution(operator, again):
    trained, model = narrow_resnet().eval(), again(changed(operator))
    state = trained.state_dict()
    keys = model.load_state_dict(state, strict=False)
    assert keys.unexpected_keys == []
    assert all(name.split(".conv2.")[1].startswith(OWN) for name in keys.missing_keys)
    assert keys.missing_keys
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), trained(x))
    assert "layer4.0.conv2.weight" in state


@every_operator
def test_a_strict_load_misses_what_is_new_alone_and_a_warning_says_what_to_do(operator):
    model = changed(operator)
    with (
        pytest.warns(UserWarning, match=r"before convattn\.replace.*strict=False, or load before"),
        pytest.raises(RuntimeError) as raised,
    ):
        model.load_state_dict(narrow_resnet().state_dict())
    message = str(raised.value)
    assert "Unexpected key" not in message
    assert "conv2.conv.weight" not in message
    assert "conv2.conv_norm" not in message


@every_operator
@pytest.mark.filterwarnings("error")
def test_its_own_state_dict_loads_exactly(operator):
    model = randomise(changed(operator))
    other = changed(operator)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), model(x))


@every_operator
def test_a_layer_alone_loads_a_convolution(operator):
    holder: Any = small()
    convattn.replace(holder, operator, where="0", keep=True)
    conv: Any = nn.Conv2d(8, 8, 3, padding=1)
    assert holder[0].load_state_dict(conv.state_dict(), strict=False).unexpected_keys == []
    assert torch.equal(holder[0].conv.weight, conv.weight)
    assert torch.equal(holder[0].conv.bias, conv.bias)


@every_operator
@pytest.mark.parametrize(
    "attach",
    [
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
    ],
)
def test_a_computed_weight_from_before_is_loaded(operator, attach):
    before, model = small().eval(), small().eval()
    attach(before[0])
    attach(model[0])
    convattn.replace(model, operator, where="0", keep=True)
    assert model.load_state_dict(before.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(2, 8, 9, 7)
    assert torch.equal(model(x), before(x))


@every_operator
def test_unknown_keys_stay_unexpected(operator):
    model = changed(operator)
    state = {**model.state_dict(), "layer4.0.conv2.colour": torch.ones(1)}
    keys = model.load_state_dict(state, strict=False)
    assert keys.unexpected_keys == ["layer4.0.conv2.colour"]
    state = {**narrow_resnet().state_dict(), "layer4.0.conv2.colour": torch.ones(1)}
    keys = model.load_state_dict(state, strict=False)
    assert keys.unexpected_keys == ["layer4.0.conv2.colour"]


def test_an_operator_without_convolution_loads_no_convolution():
    model: Any = narrow_resnet()
    convattn.replace(model, "xvolution", where=WHERE)
    before = model.layer4[0].conv2.conv.weight.clone()
    keys = model.load_state_dict(narrow_resnet().state_dict(), strict=False)
    assert "layer4.0.conv2.weight" in keys.unexpected_keys
    assert torch.equal(model.layer4[0].conv2.conv.weight, before)


@every_operator
def test_a_deployed_form_does_not_load_a_state_dict_from_before(operator):
    """What is folded into its convolution would be lost."""
    model = narrow_timm_resnet().eval()
    convattn.replace(model, operator, where="layer3.*.conv2", keep=True)
    deployed: Any = convattn.reparameterize(model)
    keys = deployed.load_state_dict(narrow_timm_resnet().state_dict(), strict=False)
    assert "layer3.0.conv2.weight" in keys.unexpected_keys
    fresh: Any = convattn.reparameterize(model)
    deployed.load_state_dict(fresh.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(deployed(x), fresh(x))
