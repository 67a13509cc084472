"""The norm of each pixel's channels, and which path it takes; `test_native_rows.py` has numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.norm import LayerNorm2d, add_and_norm
from convattn.ops.kernels.native import library, rows
from convattn.ops.tokens import layer_norm as _layer_norm
from convattn.ops.tokens.layer_norm import add_layer_norm_2d, layer_norm_2d
from tests.compare import assert_close, assert_same
from tests.ops.properties import OperatorProperties


class TestLayerNorm2d(OperatorProperties):
    """Weights are given for the channels: what has one dimension is shared by the images."""

    # PyTorch adds up the gradients of bfloat16 weights in bfloat16, ours in none
    test_half_precision_follows_float32 = None

    def fast(self, *tensors: Tensor) -> Tensor:
        x, weight, bias = tensors
        return layer_norm_2d(x, (x.shape[1],), weight, bias, 1e-5)

    def reference(self, *tensors: Tensor) -> Tensor:
        x, weight, bias = tensors
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        y = (x - mean) / (variance + 1e-5).sqrt()
        return y * weight[:, None, None] + bias[:, None, None]

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        channels = shape[1]
        tensors = [torch.randn(shape), torch.randn(channels), torch.randn(channels)]
        return [t.to(dtype) for t in tensors]


def _plain(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    pixels = x.permute(0, 2, 3, 1)
    return F.layer_norm(pixels, pixels.shape[3:], weight, bias, 1e-6).permute(0, 3, 1, 2)


@pytest.fixture
def sums_normed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the sums that the kernels were given."""
    shapes, norm = [], rows.add_layer_norm

    def recorded(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(x.shape))
        return norm(x, *others)

    monkeypatch.setattr(rows, "add_layer_norm", recorded)
    return shapes


@pytest.fixture
def rows_normed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the kernels were given."""
    shapes, norm = [], rows.layer_norm

    def recorded(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        shapes.append(tuple(x.shape))
        return norm(x, weight, bias, eps)

    monkeypatch.setattr(rows, "layer_norm", recorded)
    return shapes


def _map(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not library.available(), reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 20, 3, 5), (1, 64, 1, 1), (3, 1, 4, 4)])
def test_maps_with_channels_last_are_normed_by_rows(shape, dtype, rows_normed):
    x, (weight, bias) = _map(dtype, *shape), torch.randn(2, shape[1]).to(dtype)
    with torch.no_grad():
        y = layer_norm_2d(x, shape[1:2], weight, bias, 1e-6)
    assert rows_normed == [(shape[0], *shape[2:], shape[1])]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y.float(), _plain(x.float(), weight.float(), bias.float()), dtype)


W = torch.linspace(1, 2, 20)
OTHERS = {
    "(C, H, W)": (torch.randn(2, 20, 3, 5), W, W),
    "half a batch": (_map(torch.float32, 2, 40, 3, 5)[:, :20], W, W),
    "no image": (_map(torch.float32, 0, 20, 3, 5), W, W),
    "no pixel": (_map(torch.float32, 2, 20, 0, 5), W, W),
    "no weight": (_map(torch.float32, 2, 20, 3, 5), None, None),
    "no bias": (_map(torch.float32, 2, 20, 3, 5), W, None),
    "weights of another type": (_map(torch.bfloat16, 2, 20, 3, 5), W, W),
    "every second weight": (_map(torch.float32, 2, 20, 3, 5), W.repeat_interleave(2)[::2], W),
    "one bias": (_map(torch.float32, 2, 20, 3, 5), W, torch.ones(1).expand(20)),
    "too wide": (_map(torch.float32, 1, 2**14, 1, 2), *torch.randn(2, 2**14)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_maps_are_left_to_pytorch(name, rows_normed):
    x, weight, bias = OTHERS[name]
    with torch.no_grad():
        y = layer_norm_2d(x, x.shape[1:2], weight, bias, 1e-6)
    assert not rows_normed
    assert torch.equal(y, _plain(x, weight, bias))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_is_enough_to_keep_what_it_needs(wanted, rows_normed):
    x = _map(torch.float32, 2, 20, 3, 5)
    weight, bias = torch.randn(20), torch.randn(20)
    (x, weight, bias)[wanted].requires_grad_()
    assert layer_norm_2d(x, (20,), weight, bias, 1e-6).requires_grad
    assert not rows_normed


@pytest.mark.parametrize("weights", [8, 20])
@pytest.mark.parametrize("shape", [(8,), (20,)])
def test_shapes_that_do_not_fit_are_errors(shape, weights, rows_normed):
    x, (weight, bias) = _map(torch.float32, 2, 20, 3, 5), torch.randn(2, weights)
    with torch.no_grad():
        if shape == (weights,) == (20,):
            layer_norm_2d(x, shape, weight, bias, 1e-6)
            return
        with pytest.raises(RuntimeError, match="normalized_shape"):
            layer_norm_2d(x, shape, weight, bias, 1e-6)
        with pytest.raises(RuntimeError, match="normalized_shape"):
            layer_norm_2d(x, (8,), None, None, 1e-6)
    assert not rows_normed


def test_without_a_compiler_pytorch_norms(monkeypatch, rows_normed):
    monkeypatch.setattr(rows, "available", lambda: False)
    x = _map(torch.float32, 2, 20, 3, 5)
    with torch.no_grad():
        assert torch.equal(layer_norm_2d(x, (20,), W, W, 1e-6), _plain(x, W, W))
    assert not rows_normed


def test_every_rule_has_its_reason():
    assert [path for path, _, why in _layer_norm.RULES if why] == ["native", "aten"]


@pytest.mark.skipif(not library.available(), reason="no C compiler")
@pytest.mark.parametrize("width", [3, 16, 64, 100, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_and_its_norm_are_those_of_two_steps(dtype, width, sums_normed):
    x, branch = (_map(dtype, 2, width, 5, 7) for _ in range(2))
    weight, bias = (torch.randn(width).to(dtype) for _ in range(2))
    expected = x + branch
    with torch.inference_mode():
        total, normed = add_layer_norm_2d(x, branch, (width,), weight, bias, 1e-6)
    assert sums_normed == [(2, 5, 7, width)]
    assert torch.equal(total, expected)
    assert_close(normed, _plain(expected, weight, bias), dtype)
    assert total.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wanted", range(4))
def test_a_sum_and_its_norm_have_all_gradients(wanted, dtype, sums_normed):
    tensors = [_map(dtype, 2, 6, 3, 4) for _ in range(2)]
    tensors += [torch.randn(6, dtype=dtype) for _ in range(2)]
    tensors[wanted].requires_grad_()
    x, branch, weight, bias = tensors
    total, normed = add_layer_norm_2d(x, branch, (6,), weight, bias, 1e-6)
    expected = _plain(x + branch, weight, bias)
    ours, theirs = (
        torch.autograd.grad(y.square().sum() + s.sum(), tensors[wanted])
        for y, s in ((normed, total), (expected, x + branch))
    )
    assert not sums_normed
    assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("other", ["layout", "type", "shape"])
def test_a_sum_of_unlike_maps_is_that_of_pytorch(other, sums_normed):
    x, branch = (_map(torch.float32, 2, 64, 5, 7) for _ in range(2))
    branch = {
        "layout": branch.contiguous(),
        "type": branch.bfloat16(),
        "shape": branch[:, :, :1, :1],
    }[other]
    weight, bias = torch.randn(64), torch.randn(64)
    with torch.inference_mode():
        total, normed = add_layer_norm_2d(x, branch, (64,), weight, bias, 1e-6)
    assert not sums_normed
    assert_close(total, x + branch, torch.float32)
    assert_close(normed, _plain(x + branch, weight, bias), torch.float32)


class _SumAndNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = LayerNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        total, y = add_and_norm(x, x * 2, self.norm)
        return total + y


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(8, 8, 1), LayerNorm2d(8), nn.ReLU()),
        nn.Sequential(LayerNorm2d(8, affine=False)),
        nn.Sequential(_SumAndNorm()),
    ],
)
def test_a_symbolic_trace_gives_values_and_gradients(module):
    traced = torch.fx.symbolic_trace(module)
    assert_same(traced, module, [_map(torch.float32, 2, 8, 5, 6)])
    with torch.inference_mode():
        x = _map(torch.float32, 2, 8, 5, 6)
        assert_close(traced(x), module(x), torch.float32)
