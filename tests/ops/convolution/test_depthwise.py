from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from convattn.ops.convolution import depthwise as _depthwise
from convattn.ops.convolution.depthwise import depthwise_conv2d
from convattn.ops.processor import onednn_computes
from tests.compare import assert_close, assert_same, values_and_gradients

SIZES = [(9, 7), (1, 1), (2, 11), (5, 5)]


@pytest.fixture
def _threes(monkeypatch):
    rules = (("threes", lambda case: case.grad, ""), ("aten", lambda _: True, ""))
    monkeypatch.setattr(_depthwise, "RULES", rules)


def _tensors(k: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    return [t.to(dtype) for t in (x, torch.randn(6, 1, k, k).double(), torch.randn(6).double())]


def _ours(k: int, dilation: int = 1) -> Any:
    padding = dilation * (k // 2)
    return lambda x, w, b=None: depthwise_conv2d(x, w, b, 1, padding, dilation)


def _theirs(k: int, dilation: int = 1) -> Any:
    padding = dilation * (k // 2)
    return lambda x, w, b=None: F.conv2d(x, w, b, 1, padding, dilation, groups=6)


@pytest.mark.usefixtures("_threes")
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("k", [5, 7, 9, 11])
@pytest.mark.parametrize("size", SIZES)
def test_is_the_convolution_with_its_gradients(size, k, dilation):
    tensors = _tensors(k, size)
    assert_same(_ours(k, dilation), _theirs(k, dilation), tensors)
    assert_same(_ours(k, dilation), _theirs(k, dilation), tensors[:2])
    tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    assert_same(_ours(k, dilation), _theirs(k, dilation), tensors)


@pytest.mark.usefixtures("_threes")
def test_gradients_match_finite_differences_twice():
    tensors = [t.requires_grad_() for t in _tensors(5, (3, 4))]
    torch.autograd.gradcheck(_ours(5), tensors)
    torch.autograd.gradgradcheck(_ours(5), tensors)


@pytest.mark.usefixtures("_threes")
@pytest.mark.parametrize("wanted", range(3))
def test_each_tensor_alone_may_want_a_gradient(wanted):
    tensors, found = _tensors(5, (6, 7)), []
    for function in (_ours(5), _theirs(5)):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        function(*leaves).square().sum().backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves)
        found.append(leaves[wanted].grad)
    assert_close(found[0], found[1], torch.float64)


def test_bfloat16_follows_float32():
    tensors = _tensors(5, (14, 14), torch.bfloat16)
    ours = values_and_gradients(_ours(5), tensors)
    theirs = values_and_gradients(_theirs(5), [t.float() for t in tensors])
    for half, single in zip(ours, theirs, strict=True):
        scale = single.abs().amax()
        assert_close(half.float() / scale, single / scale, torch.bfloat16)


@pytest.mark.skipif(not onednn_computes(torch.bfloat16), reason="PyTorch's gradient is faster here")
def test_training_in_bfloat16_asks_for_no_wide_weight_gradient(monkeypatch):
    asked: list[tuple[int, ...]] = []
    gradients = _depthwise._gradients

    def spy(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
        asked.append((*weight.shape[2:], rest[-1][1]))
        return gradients(grad, x, weight, *rest)

    monkeypatch.setattr(_depthwise, "_gradients", spy)
    with torch.autocast("cpu", torch.bfloat16):
        y = _ours(5)(*(t.requires_grad_() for t in _tensors(5, (6, 6), torch.float32)))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert asked == [(5, 5, False), *[(3, 3, True)] * 4]


def test_a_stride_is_taken_as_it_is():
    x, weight, bias = _tensors(5, (9, 8), torch.bfloat16)
    y = depthwise_conv2d(x.requires_grad_(), weight, bias, 2, 2, 1)
    assert_close(y, F.conv2d(x, weight, bias, 2, 2, groups=6), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_autocast_does_what_it_does_to_a_convolution(dtype):
    tensors = _tensors(5, (6, 6), dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = _ours(5)(*tensors), _theirs(5)(*tensors)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


def test_forward_mode_takes_the_path_that_knows_it():
    x, weight, bias = (t.requires_grad_() for t in _tensors(5, (6, 6), torch.bfloat16))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        actual, expected = (
            forward_ad.unpack_dual(f(dual, weight, bias)).tangent for f in (_ours(5), _theirs(5))
        )
    assert torch.equal(actual, expected)
