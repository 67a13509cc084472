"""Linear layers of tokens: a 1x1 convolution where that is faster, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.heads import HeadAttention
from convattn.ops.convolution.gelu import has_kernel
from convattn.ops.tokens.linear import linear
from tests.compare import assert_close, assert_same

needs_onednn = pytest.mark.skipif(not has_kernel(torch.float32), reason="no oneDNN")


def _inputs(batch: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, tokens, 12), (20, 12), (20,)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.fixture
def _two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@needs_onednn
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tokens", "path"),
    [
        (torch.float32, 7, "conv"),
        (torch.bfloat16, 512, "conv" if has_kernel(torch.bfloat16) else "aten"),
        (torch.bfloat16, 511, "aten"),
        (torch.float64, 512, "aten"),
    ],
)
def test_tokens_are_convolved_where_that_is_faster(dtype, tokens, path, bias, monkeypatch):
    plain, convolved = F.conv2d, [False]

    def conv2d(*args: Any) -> Tensor:
        convolved[0] = True
        return plain(*args)

    monkeypatch.setattr(F, "conv2d", conv2d)
    x, weight, offset = _inputs(2, tokens, dtype)
    given = offset if bias else None
    with torch.inference_mode():
        y = linear(x, weight, given)
        expected = F.linear(x.double(), weight.double(), None if given is None else given.double())
    assert y.is_contiguous()
    assert y.dtype == dtype
    assert_close(y.double(), expected, dtype)
    assert convolved == [path == "conv"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_a_linear_layer(dtype):
    assert_same(linear, F.linear, _inputs(2, 5, dtype))


@pytest.mark.usefixtures("_two_threads")
def test_an_empty_batch_and_tokens_of_any_layout_are_taken():
    x, weight, bias = _inputs(2, 6, torch.float32)
    with torch.inference_mode():
        assert linear(x[:0], weight, bias).shape == (0, 6, 20)
        turned = x.transpose(0, 1)
        assert_close(linear(turned, weight, bias), F.linear(turned, weight, bias), torch.float32)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.usefixtures("_two_threads")
def test_a_layer_that_is_watched_or_replaced_is_called():
    torch.manual_seed(0)
    attention, x, seen = HeadAttention(8, 2).eval(), torch.randn(1, 5, 8), []
    with torch.inference_mode():
        plain = attention(x)
        attention.qkv.register_forward_hook(lambda *_: seen.append(1))
        assert_close(attention(x), plain, torch.float32)
        assert seen == [1]
        double = Doubled(8, 8)
        double.load_state_dict(attention.proj.state_dict())
        attention.proj = double
        assert_close(attention(x), 2 * plain, torch.float32)


@needs_onednn
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("stride", [1, 7, 72])
def test_the_stride_of_a_single_image_does_not_matter(stride):
    _, weight, bias = _inputs(1, 6, torch.float32)
    x = torch.randn(77).as_strided((1, 6, 12), (stride, 12, 1))
    with torch.inference_mode():
        y = linear(x, weight, bias)
    assert y.stride()[1:] == (20, 1)
    assert_close(y, F.linear(x, weight, bias), torch.float32)
