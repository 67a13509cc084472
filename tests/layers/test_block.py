"""The residual block around a way of mixing positions: its trained and its deployed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from convattn import ops
from convattn.layers.attention.block import AttentionBlock
from convattn.layers.glmix import GLMixBlock
from convattn.layers.norm import LayerNorm2d
from tests.compare import assert_close
from tests.layers.properties import randomise


def _block() -> GLMixBlock:
    return randomise(GLMixBlock(8, num_heads=2, slots=4, mlp_dwconv=True)).eval()


def _map() -> Tensor:
    return torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("deploy", [False, True])
@torch.inference_mode()
def test_a_hook_on_a_norm_is_called(deploy):
    block, x, seen = _block(), _map(), []
    plain = block(x)
    block.norm2.register_forward_hook(lambda *call: seen.append(call[2]))
    if deploy:
        block.reparameterize()
    assert_close(block(x), plain, torch.float32)
    assert len(seen) == 1


@pytest.mark.parametrize("deploy", [False, True])
@torch.inference_mode()
def test_another_norm_takes_the_place_of_the_layer_norm(deploy):
    block, x = _block(), _map()
    block.norm2 = nn.GroupNorm(2, 8)
    expected = block(x)
    if deploy:
        block.reparameterize()
    assert_close(block(x), expected, torch.float32)


@pytest.mark.parametrize("block", [_block(), AttentionBlock(8, head_dim=4).eval()])
@torch.inference_mode()
def test_the_deployed_form_adds_and_norms_in_one_step(block):
    block, x = copy.deepcopy(block), _map()
    expected, names = block(x), list(block.state_dict())
    with ops.record_paths() as before:
        block(x)
    block.reparameterize()
    with ops.record_paths() as after:
        y = block(x)
    assert_close(y, expected, torch.float32)
    assert "add_layer_norm_2d" not in {choice.operator for choice in before}
    assert "add_layer_norm_2d" in {choice.operator for choice in after}
    assert {name for name in block.state_dict() if "norm2" in name} == {
        name for name in names if "norm2" in name
    }
    block.reparameterize()
    assert_close(block(x), expected, torch.float32)


def test_gradients_of_the_deployed_form_are_those_of_the_trained_form():
    block, x = _block(), _map().requires_grad_()
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    block.reparameterize()
    (actual,) = torch.autograd.grad(block(x).square().sum(), x)
    assert isinstance(block.norm1, LayerNorm2d)
    assert_close(actual, expected, torch.float32)
