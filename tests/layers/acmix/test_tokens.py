from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from convattn.layers import ACmix, GlobalAttention, SpatialReductionAttention
from tests.compare import assert_close
from tests.layers.properties import randomise

PARTS = {
    "global": lambda: GlobalAttention(16, num_heads=2, proj=True),
    "spatial_reduction": lambda: SpatialReductionAttention(16, reduction=2, stride=2),
}


def _acmix(name: str, **arguments: Any) -> ACmix:
    stride = PARTS[name]().stride
    layer = ACmix(16, attention=PARTS[name](), stride=stride, fc_bias=True, **arguments)
    return randomise(layer).double().eval()


def _inputs(tokens: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 16, 5, 6).double(), torch.randn(2, tokens, 16).double()


@pytest.mark.parametrize("name", PARTS)
def test_the_convolution_path_and_tokens_are_independent(name):
    layer, (x, tokens) = _acmix(name), _inputs()
    attention = copy.deepcopy(layer)
    attention.fc = None  # the attention is left, not yet weighted
    torch.nn.init.ones_(attention.alpha)
    convolution = copy.deepcopy(layer)
    torch.nn.init.zeros_(convolution.alpha)
    y, u = layer.forward_tokens(x, tokens)
    attended, seen = attention.forward_tokens(x, tokens)
    assert_close(u, layer.alpha * seen, torch.float64)
    assert_close(y, layer.alpha * attended + convolution(x), torch.float64)


@pytest.mark.parametrize("name", PARTS)
def test_pixels_and_tokens_attend_to_each_other(name):
    layer, (x, tokens) = _acmix(name), _inputs()
    x.requires_grad_()
    tokens.requires_grad_()
    y, u = layer.forward_tokens(x, tokens)
    (to_tokens,) = torch.autograd.grad(y[0, :, -1, -1].sum(), tokens, retain_graph=True)
    assert to_tokens[0].abs().sum(1).gt(0).all()
    assert not to_tokens[1].any()
    to_map, to_tokens = torch.autograd.grad(u[0, 0].sum(), (x, tokens))
    assert to_map[0, :, 0, 0].any()
    assert to_tokens[0].abs().sum(1).gt(0).all()


def test_without_the_convolution_it_is_the_attention_of_a_vision_transformer():
    timm_layers = pytest.importorskip("timm.layers")
    layer, (x, tokens) = _acmix("global", mix="attention"), _inputs(1)
    plain = timm_layers.Attention(16, num_heads=2, qkv_bias=True).double()
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    plain.qkv.weight.data = torch.cat([p.weight[:, :, 0, 0] for p in projections])
    plain.qkv.bias.data = torch.cat([p.bias for p in projections if p.bias is not None])
    proj: Any = layer.attn.proj
    plain.proj.weight.data, plain.proj.bias.data = proj.weight[:, :, 0, 0], proj.bias
    y, u = layer.forward_tokens(x, tokens)
    expected = plain(torch.cat([tokens, x.flatten(2).transpose(1, 2)], dim=1))
    assert_close(u, expected[:, :1], torch.float64)
    assert_close(y.flatten(2).transpose(1, 2), expected[:, 1:], torch.float64)


def test_an_attention_without_a_stride_is_sampled_and_its_tokens_are_not():
    part = GlobalAttention(16, num_heads=2)
    dense = randomise(ACmix(16, attention=part)).double().eval()
    strided = ACmix(16, attention=copy.deepcopy(part), stride=2).double().eval()
    strided.load_state_dict(dense.state_dict())
    (y, u), (whole, seen) = (layer.forward_tokens(*_inputs()) for layer in (strided, dense))
    assert_close(y, whole[:, :, ::2, ::2], torch.float64)
    assert_close(u, seen, torch.float64)


def test_a_sliding_window_does_not_support_tokens():
    with pytest.raises(NotImplementedError, match="tokens; use attention='global' or"):
        ACmix(16).double().forward_tokens(*_inputs())


def test_the_convolution_alone_does_not_support_tokens():
    with pytest.raises(ValueError, match="mix='convolution' has no attention"):
        _acmix("global", mix="convolution").forward_tokens(*_inputs())


@pytest.mark.parametrize("shape", [(2, 16), (1, 3, 16), (2, 3, 8), (2, 0, 16)])
def test_tokens_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"must be \(B, T, C\) = \(2, T, 16\), as the map is, got"):
        _acmix("global").forward_tokens(_inputs()[0], torch.zeros(shape).double())
