"""Depth-wise convolutions: every path against PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from convattn import ops
from convattn.ops.convolution.depthwise import DEPTHWISE, DepthwiseCall, depthwise_conv2d
from convattn.ops.processor import onednn_computes
from tests.compare import assert_close, assert_same, values_and_gradients

SIZES = [(9, 7), (1, 1), (2, 11), (5, 5)]


@pytest.fixture(params=DEPTHWISE.backends)
def path(request) -> Iterator[str]:
    with ops.use_backend(request.param), ops.record_paths() as taken:
        yield request.param
    assert {choice.path for choice in taken} == {request.param}


def _tensors(k: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    return [t.to(dtype) for t in (x, torch.randn(6, 1, k, k).double(), torch.randn(6).double())]


def _ours(k: int, dilation: int = 1) -> Any:
    padding = dilation * (k // 2)
    return lambda x, w, b=None: depthwise_conv2d(x, w, b, 1, padding, dilation)


def _theirs(k: int, dilation: int = 1) -> Any:
    padding = dilation * (k // 2)
    return lambda x, w, b=None: F.conv2d(x, w, b, 1, padding, dilation, groups=6)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("k", [5, 7, 9, 11])
@pytest.mark.parametrize("size", SIZES)
def test_every_path_is_the_convolution_with_its_gradients(size, k, dilation):
    tensors = _tensors(k, size)
    assert_same(_ours(k, dilation), _theirs(k, dilation), tensors)
    assert_same(_ours(k, dilation), _theirs(k, dilation), tensors[:2])
    tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    assert_same(_ours(k, dilation), _theirs(k, dilation), tensors)


@pytest.mark.usefixtures("path")
def test_gradients_match_finite_differences_twice():
    tensors = [t.requires_grad_() for t in _tensors(5, (3, 4))]
    torch.autograd.gradcheck(_ours(5), tensors)
    torch.autograd.gradgradcheck(_ours(5), tensors)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("required", range(3))
def test_each_tensor_alone_may_require_a_gradient(required):
    tensors, found = _tensors(5, (6, 7)), []
    for function in (_ours(5), _theirs(5)):
        leaves = [t.clone().requires_grad_(i == required) for i, t in enumerate(tensors)]
        function(*leaves).square().sum().backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves)
        found.append(leaves[required].grad)
    assert_close(found[0], found[1], torch.float64)


def test_bfloat16_follows_float32():
    tensors = _tensors(5, (14, 14), torch.bfloat16)
    ours = values_and_gradients(_ours(5), tensors)
    theirs = values_and_gradients(_theirs(5), [t.float() for t in tensors])
    for half, single in zip(ours, theirs, strict=True):
        scale = single.abs().amax()
        assert_close(half.float() / scale, single / scale, torch.bfloat16)


@pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason="PyTorch's gradient is faster here")
@pytest.mark.parametrize(
    ("dtype", "k", "grad", "path"),
    [
        (torch.bfloat16, 5, True, "threes"),
        (torch.bfloat16, 5, False, "reference"),
        (torch.bfloat16, 3, True, "reference"),
        (torch.float32, 5, True, "reference"),
    ],
)
def test_auto_takes_threes_to_train_large_kernels_in_bfloat16(dtype, k, grad, path):
    tensors = [t.requires_grad_(grad) for t in _tensors(k, (6, 6), dtype)]
    with ops.record_paths() as taken:
        _ours(k)(*tensors)
    assert [choice.path for choice in taken] == [path]


@pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason="PyTorch's gradient is faster here")
def test_training_in_bfloat16_computes_the_gradients_of_3x3_weights():
    with torch.autocast("cpu", torch.bfloat16):
        y = _ours(5)(*(t.requires_grad_() for t in _tensors(5, (6, 6), torch.float32)))
    assert y.dtype == torch.bfloat16
    with WeightGradients() as kernels:
        y.float().sum().backward()
    assert kernels.sizes == [(3, 3)] * 4


class WeightGradients(TorchDispatchMode):
    """Notes the sizes of the kernels whose gradients are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:
            self.sizes.append(tuple(args[2].shape[2:]))
        return func(*args, **(kwargs or {}))


REFUSED = {
    "stride 2": (torch.float32, 5, 2),
    "3x3 at least": (torch.float32, 1, 1),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_threes_says_why_it_cannot(sentence):
    dtype, k, stride = REFUSED[sentence]
    x, weight, bias = _tensors(k, (6, 6), dtype)
    call = DepthwiseCall(x, weight, bias, stride, k // 2, 1)
    with pytest.raises(ValueError, match=f"backend 'threes' cannot compute .*{sentence}"):
        DEPTHWISE.choose(call, "threes")


def test_a_stride_is_that_of_the_convolution():
    x, weight, bias = _tensors(5, (9, 8), torch.bfloat16)
    y = depthwise_conv2d(x.requires_grad_(), weight, bias, 2, 2, 1)
    assert_close(y, F.conv2d(x, weight, bias, 2, 2, groups=6), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_autocast_changes_types_as_it_does_for_a_convolution(dtype):
    tensors = _tensors(5, (6, 6), dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = _ours(5)(*tensors), _theirs(5)(*tensors)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


def test_forward_mode_has_its_derivative():
    x, weight, bias = (t.requires_grad_() for t in _tensors(5, (6, 6), torch.bfloat16))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        actual, expected = (
            forward_ad.unpack_dual(f(dual, weight, bias)).tangent for f in (_ours(5), _theirs(5))
        )
    assert torch.equal(actual, expected)
