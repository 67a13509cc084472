from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import nn

from convattn.layers.heads import HeadAttention
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
