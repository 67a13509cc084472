"""Linear layers of tokens: every path against PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn import ops
from convattn.ops.convolution.gelu import has_kernel
from convattn.ops.tokens.linear import LINEAR, LinearCall, linear
from tests.compare import assert_close, assert_same

needs_onednn = pytest.mark.skipif(not has_kernel(torch.float32), reason="no oneDNN")


def _inputs(batch: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, tokens, 12), (20, 12), (20,)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("path", LINEAR.backends)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_path_is_a_linear_layer(dtype, path, bias):
    x, weight, offset = _inputs(2, 7, dtype)
    given = offset if bias else None
    expected = F.linear(x.double(), weight.double(), None if given is None else given.double())
    with torch.inference_mode(), ops.use_backend(path), ops.record_paths() as taken:
        y = linear(x, weight, given)
    assert [choice.path for choice in taken] == [path]
    assert y.is_contiguous()
    assert y.dtype == dtype
    assert_close(y.double(), expected, dtype)


@needs_onednn
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(
    ("dtype", "tokens", "path"),
    [
        (torch.float32, 7, "conv"),
        (torch.bfloat16, 512, "conv" if has_kernel(torch.bfloat16) else "reference"),
        (torch.bfloat16, 511, "reference"),
        (torch.float64, 512, "reference"),
    ],
)
def test_auto_convolves_what_is_faster_convolved(dtype, tokens, path):
    assert LINEAR.choose(LinearCall(*_inputs(2, tokens, dtype))).name == path
    torch.set_num_threads(1)
    assert LINEAR.choose(LinearCall(*_inputs(2, tokens, dtype))).name == "reference"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_a_linear_layer(dtype):
    assert_same(linear, F.linear, _inputs(2, 5, dtype))


@pytest.mark.parametrize("path", LINEAR.backends)
@torch.inference_mode()
def test_tokens_of_any_shape_and_layout_are_computed(path):
    x, weight, bias = _inputs(2, 6, torch.float32)
    with ops.use_backend(path):
        assert linear(x[:0], weight, bias).shape == (0, 6, 20)
        for tokens in (x.transpose(0, 1), x[0], x[0, 0], x[None]):
            expected = F.linear(tokens, weight, bias)
            assert_close(linear(tokens, weight, bias), expected, torch.float32)


@pytest.mark.parametrize("stride", [1, 7, 72])
@torch.inference_mode()
def test_the_stride_of_a_single_image_does_not_matter(stride):
    _, weight, bias = _inputs(1, 6, torch.float32)
    x = torch.randn(77).as_strided((1, 6, 12), (stride, 12, 1))
    with ops.use_backend("conv"):
        y = linear(x, weight, bias)
    assert y.stride()[1:] == (20, 1)
    assert_close(y, F.linear(x, weight, bias), torch.float32)


X, W, B = _inputs(2, 5, torch.float32)
REFUSED = {
    "it has no gradient": (X, W.clone().requires_grad_(), B),
    "float32 and bfloat16, got torch.float64": (X.double(), W.double(), B.double()),
    "tokens \\(B, N, C\\), got \\(5, 12\\)": (X[0], W, B),
    "must have one type": (X, W, B.bfloat16()),
    "contiguous tokens": (X.transpose(0, 1), W, B),
    "there is no token": (X[:0], W, B),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_the_convolution_says_why_it_cannot(sentence):
    with pytest.raises(ValueError, match=f"backend 'conv' cannot compute .*{sentence}"):
        LINEAR.choose(LinearCall(*REFUSED[sentence]), "conv")
