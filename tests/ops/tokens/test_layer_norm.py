"""The layer norm of each pixel's channels, alone or after a sum: every path against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from convattn import ops
from convattn.layers.norm import LayerNorm2d
from convattn.ops.kernels.native.library import why_not_available
from convattn.ops.tokens.layer_norm import (
    ADD_LAYER_NORM,
    LAYER_NORM,
    AddLayerNormCall,
    LayerNormCall,
    add_layer_norm_2d,
    layer_norm_2d,
)
from tests.compare import assert_close, assert_same
from tests.ops.properties import OperatorProperties

needs_kernels = pytest.mark.skipif(why_not_available() is not None, reason="no C kernels here")


class TestLayerNorm2d(OperatorProperties):
    """Weights are given for the channels: what has one dimension is shared by the images."""

    # PyTorch adds up the gradients of bfloat16 weights in bfloat16, the reference does not
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


def _map(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def _call(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> LayerNormCall:
    return LayerNormCall(x.permute(0, 2, 3, 1), weight, bias, x.shape[1:2], 1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 20, 3, 5), (1, 64, 1, 1), (3, 1, 4, 4)])
@torch.no_grad()
def test_the_kernel_norms_maps_with_channels_last(shape, dtype):
    x, (weight, bias) = _map(dtype, *shape), torch.randn(2, shape[1]).to(dtype)
    with ops.record_paths() as taken:
        y = layer_norm_2d(x, shape[1:2], weight, bias, 1e-6)
    assert [choice.path for choice in taken] == ["native"]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y.float(), _plain(x.float(), weight.float(), bias.float()), dtype)


W = torch.linspace(1, 2, 20)
LAYOUT = "channels last"
OTHERS = {
    "(C, H, W)": (torch.randn(2, 20, 3, 5), W, W, LAYOUT),
    "half a batch": (_map(torch.float32, 2, 40, 3, 5)[:, :20], W, W, LAYOUT),
    "no image": (_map(torch.float32, 0, 20, 3, 5), W, W, "has no pixel"),
    "no pixel": (_map(torch.float32, 2, 20, 0, 5), W, W, "has no pixel"),
    "no weight": (_map(torch.float32, 2, 20, 3, 5), None, None, "needs a weight and a bias"),
    "no bias": (_map(torch.float32, 2, 20, 3, 5), W, None, "needs a weight and a bias"),
    "weights of another type": (_map(torch.bfloat16, 2, 20, 3, 5), W, W, "one type"),
    "every second weight": (
        *(_map(torch.float32, 2, 20, 3, 5), W.repeat_interleave(2)[::2], W),
        "contiguous weight",
    ),
    "one bias": (
        *(_map(torch.float32, 2, 20, 3, 5), W, torch.ones(1).expand(20)),
        "contiguous weight",
    ),
    "too wide": (
        *(_map(torch.float32, 1, 2**14, 1, 2), *torch.randn(2, 2**14)),
        "for 8192 channels, got 16384",
    ),
    "float64": (_map(torch.float64, 2, 20, 3, 5), W.double(), W.double(), "got torch.float64"),
}


@needs_kernels
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_the_kernel_refuses_other_maps_which_pytorch_norms(name):
    x, weight, bias, sentence = OTHERS[name]
    with pytest.raises(ValueError, match=f"backend 'native' cannot compute .*{sentence}"):
        LAYER_NORM.choose(_call(x, weight, bias), "native")
    for backend in ("auto", *LAYER_NORM.backends):
        with ops.use_backend(backend):
            y = layer_norm_2d(x, x.shape[1:2], weight, bias, 1e-6)
        assert torch.equal(y, _plain(x, weight, bias))


@pytest.mark.parametrize("required", [0, 1, 2])
def test_one_gradient_is_enough_to_refuse_the_kernel(required):
    tensors = _map(torch.float32, 2, 20, 3, 5), torch.randn(20), torch.randn(20)
    tensors[required].requires_grad_()
    x, weight, bias = tensors
    assert layer_norm_2d(x, (20,), weight, bias, 1e-6).requires_grad
    with pytest.raises(ValueError, match="it has no gradient, and one is required"):
        LAYER_NORM.choose(_call(x, weight, bias), "native")


@pytest.mark.parametrize("weights", [8, 20])
@pytest.mark.parametrize("shape", [(8,), (20,)])
@torch.no_grad()
def test_shapes_that_do_not_fit_are_errors(shape, weights):
    x, (weight, bias) = _map(torch.float32, 2, 20, 3, 5), torch.randn(2, weights)
    if shape == (weights,) == (20,):
        assert layer_norm_2d(x, shape, weight, bias, 1e-6).shape == x.shape
        return
    with pytest.raises(RuntimeError, match="normalized_shape"):
        layer_norm_2d(x, shape, weight, bias, 1e-6)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        layer_norm_2d(x, (8,), None, None, 1e-6)


@torch.no_grad()
def test_the_reference_is_taken_by_its_name():
    x = _map(torch.float32, 2, 20, 3, 5)
    with ops.use_backend("reference"), ops.record_paths() as taken:
        layer_norm_2d(x, (20,), W, W, 1e-6)
        add_layer_norm_2d(x, x, (20,), W, W, 1e-6)
    assert [choice.path for choice in taken] == ["reference"] * 3


@pytest.mark.parametrize("path", ADD_LAYER_NORM.backends)
@pytest.mark.parametrize("width", [3, 16, 64, 100, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_every_path_computes_a_sum_and_its_norm(path, dtype, width):
    if path == "native" and why_not_available() is not None:
        pytest.skip("no C kernels here")
    x, branch = (_map(dtype, 2, width, 5, 7) for _ in range(2))
    weight, bias = (torch.randn(width).to(dtype) for _ in range(2))
    expected = x + branch
    with ops.use_backend(path), ops.record_paths() as taken:
        total, normed = add_layer_norm_2d(x, branch, (width,), weight, bias, 1e-6)
    assert taken[0].path == path
    assert torch.equal(total, expected)
    assert_close(normed, _plain(expected, weight, bias), dtype)
    assert total.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("required", range(4))
def test_a_sum_and_its_norm_have_all_gradients(required, dtype):
    tensors = [_map(dtype, 2, 6, 3, 4) for _ in range(2)]
    tensors += [torch.randn(6, dtype=dtype) for _ in range(2)]
    tensors[required].requires_grad_()
    x, branch, weight, bias = tensors
    total, normed = add_layer_norm_2d(x, branch, (6,), weight, bias, 1e-6)
    expected = _plain(x + branch, weight, bias)
    ours, theirs = (
        torch.autograd.grad(y.square().sum() + s.sum(), tensors[required])
        for y, s in ((normed, total), (expected, x + branch))
    )
    assert_close(ours, theirs, dtype)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x.contiguous(), LAYOUT),
        (lambda x: x.bfloat16(), "one type"),
        (lambda x: x[:, :, :1, :1].clone(), "both maps must have one shape"),
    ],
)
@torch.inference_mode()
def test_the_kernel_refuses_unlike_maps_which_pytorch_adds(change, sentence):
    x, branch = (_map(torch.float32, 2, 64, 5, 7) for _ in range(2))
    branch = change(branch)
    weight, bias = torch.randn(64), torch.randn(64)
    maps = x.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)
    with pytest.raises(ValueError, match=sentence):
        ADD_LAYER_NORM.choose(AddLayerNormCall(*maps, weight, bias, (64,), 1e-6), "native")
    total, normed = add_layer_norm_2d(x, branch, (64,), weight, bias, 1e-6)
    assert_close(total, x + branch, torch.float32)
    assert_close(normed, _plain(x + branch, weight, bias), torch.float32)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(8, 8, 1), LayerNorm2d(8), nn.ReLU()),
        nn.Sequential(LayerNorm2d(8, affine=False)),
    ],
)
def test_a_symbolic_trace_gives_values_and_gradients(module):
    traced = torch.fx.symbolic_trace(module)
    assert_same(traced, module, [_map(torch.float32, 2, 8, 5, 6)])
    with torch.inference_mode():
        x = _map(torch.float32, 2, 8, 5, 6)
        assert_close(traced(x), module(x), torch.float32)
