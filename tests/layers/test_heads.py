from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import nn

from convattn.layers.heads import HeadAttention
from convattn.layers.linear import Linear
from tests.compare import assert_close


def test_is_the_attention_of_timm_with_its_parameters():
    theirs = Attention(24, 3, qkv_bias=True).double()
    ours = HeadAttention(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    assert_close(ours(x), theirs(x), torch.float64)


def test_starts_where_timm_starts():
    torch.manual_seed(1)
    ours = HeadAttention(24, 3).state_dict()
    torch.manual_seed(1)
    theirs = Attention(24, 3, qkv_bias=True).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layer", ["qkv", "proj"])
@torch.inference_mode()
def test_layers_with_a_hook_are_called(layer):
    attention, x = HeadAttention(8, 2).eval(), torch.randn(1, 5, 8)
    attention.proj.bias.zero_()
    attention.qkv.bias.zero_()
    plain = attention(x)
    linear: Any = attention.get_submodule(layer)
    with linear.register_forward_hook(lambda _, __, y: torch.zeros_like(y)):
        assert_close(attention(x), torch.zeros_like(x), torch.float32)
    linear.forward = lambda x: torch.nn.functional.linear(x, 2 * linear.weight, linear.bias)
    changed = attention(x)
    del linear.forward
    assert (changed - plain).abs().max() > 1e-4
    attention.set_submodule(layer, nn.Sequential(linear))
    assert_close(attention(x), plain, torch.float32)


def test_dynamic_quantization_finds_the_layers():
    """PyTorch exchanges layers by their exact class."""
    assert {type(HeadAttention(8, 2).qkv), type(HeadAttention(8, 2).proj)} == {nn.Linear}


def test_the_deployed_form_has_the_same_parameters_and_takes_the_faster_path():
    attention = HeadAttention(8, 2).double().eval()
    before, x = attention.state_dict(), torch.randn(1, 5, 8, dtype=torch.float64)
    expected = attention(x)
    attention.reparameterize()
    assert isinstance(attention.qkv, Linear)
    assert isinstance(attention.proj, Linear)
    assert not attention.proj.training
    after = attention.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert_close(attention(x), expected, torch.float64)
