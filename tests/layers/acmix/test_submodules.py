"""ACmix computes with the submodules that it has at a call: copied, moved, replaced or wrapped."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convattn import ACmix
from convattn.layers.attention.choice import ATTENTIONS
from tests.compare import assert_close
from tests.layers.properties import randomise


def trained(**options: Any) -> Any:
    return randomise(ACmix(16, **options)).double().eval()


def saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def maps() -> Tensor:
    return torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_copy_has_weights_of_its_own(attention, deployed, copied):
    layer = trained(attention=attention)
    if deployed:
        layer.reparameterize()
    other, expected = copied(layer), layer(maps())
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert_close(other(maps()), expected, torch.float64)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("mix", ["learned", "attention"])
def test_the_attention_may_be_replaced(attention, mix):
    expected = trained(attention=attention, mix=mix)
    groups = expected.attn.groups
    built = "patchwise" if attention == "patchwise" else "sliding_window"
    layer = trained(attention=built, mix=mix)
    assert layer.attn.groups == groups
    y = expected(maps())
    layer.attn = expected.attn
    layer.load_state_dict(expected.state_dict())
    assert_close(layer(maps()), y, torch.float64)
    layer.reparameterize()
    assert_close(layer(maps()), y, torch.float64)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "fc", "dep_conv"])
def test_a_layer_may_be_replaced(name):
    layer, other = trained(window_size=3), trained(window_size=3)
    for parameter in other.get_submodule(name).parameters():
        parameter.data.neg_()
    setattr(layer, name, other.get_submodule(name))
    assert_close(layer(maps()), other(maps()), torch.float64)


def test_a_layer_and_its_parameters_have_one_name():
    layer = ACmix(16, fc_bias=True)
    names = [name for name, _ in layer.named_modules(remove_duplicate=False) if name]
    assert [name for name in names if "." not in name] == [
        *("q_proj", "k_proj", "v_proj", "attn", "fc", "dep_conv")
    ]
    assert {id(p) for p in layer.parameters()} == {
        id(p) for _, p in layer.named_parameters(remove_duplicate=False)
    }


@pytest.mark.parametrize("attention", ["sliding_window", "patchwise"])
@pytest.mark.parametrize(
    "options",
    [{"bias": True}, {"dilation": 2, "padding": 2}, {"padding_mode": "circular"}, {"groups": 1}],
)
def test_a_group_convolution_of_other_options_is_called(attention, options):
    layer = trained(attention=attention, window_size=3)
    old = layer.dep_conv
    options = {"padding": 1, "groups": old.groups, "bias": False, **options}
    sizes = old.in_channels, old.out_channels, 3
    layer.dep_conv = randomise(nn.Conv2d(*sizes, **options)).double()
    with torch.no_grad():
        y = layer(maps())
        handle = layer.dep_conv.register_forward_hook(lambda *_: None)  # and so it is called
        expected = layer(maps())
        handle.remove()
        assert_close(y, expected, torch.float64)
        layer.reparameterize()
        assert_close(layer(maps()), expected, torch.float64)
