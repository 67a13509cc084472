"""Attention of few tokens: every path against the formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn import ops
from convattn.ops import tuned
from convattn.ops.kernels.native.library import why_not_available
from convattn.ops.processor import multiplies
from convattn.ops.tokens.heads import HEADS, HeadsCall, attend_heads
from tests.compare import assert_close, values_and_gradients
from tests.memory import LargestTensor

needs_kernels = pytest.mark.skipif(why_not_available() is not None, reason="no C kernels here")
needs_products = pytest.mark.skipif(
    not multiplies(torch.bfloat16), reason="products in bfloat16 are slow on this processor"
)


def _plain(qkv: Tensor, num_heads: int) -> Tensor:
    B, N, width = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / (width / 3 / num_heads) ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, N, width // 3)


@pytest.fixture(params=["auto", *HEADS.backends])
def path(request) -> Iterator[str]:
    """The path that is taken for every call that it does not refuse."""
    with ops.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("tile", [1, 2**19])
@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (5, 2), (64, 4), (70, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_path_is_softmax_attention_of_each_head(
    path, dtype, tokens, heads, tile, monkeypatch
):
    monkeypatch.setattr(tuned, "HEADS_TILE_LOGITS", tile)
    qkv = torch.randn(3, tokens, 3 * heads * 6).to(dtype)
    expected = values_and_gradients(lambda x: _plain(x, heads), [qkv.double()])
    actual = values_and_gradients(lambda x: attend_heads(x, heads), [qkv])
    with torch.inference_mode(), ops.record_paths() as taken:
        inferred = attend_heads(qkv, heads)
    assert inferred.dtype == actual[0].dtype == dtype
    assert_close([t.double() for t in (*actual, inferred)], [*expected, expected[0]], dtype)
    refused = path == "native" and (dtype == torch.float64 or why_not_available() is not None)
    if path != "auto" and not refused:
        assert [choice.path for choice in taken] == [path]


@pytest.mark.usefixtures("path")
def test_gradients_match_finite_differences():
    qkv = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: attend_heads(x, 2), [qkv])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("tokens", [5, 70])
def test_function_transforms_have_every_derivative(tokens):
    qkv, along = torch.randn(2, 2, tokens, 12, dtype=torch.float64)

    def derivatives(attend: Callable[[Tensor], Tensor]) -> list[Tensor]:
        def slope(x: Tensor) -> Tensor:
            return torch.func.grad(lambda x: attend(x).square().sum())(x)

        return [
            *torch.func.jvp(attend, (qkv,), (along,)),
            torch.func.grad(lambda x: (slope(x) * along).sum())(qkv),
            torch.func.vmap(lambda x: attend(x[None])[0])(qkv),
        ]

    actual, expected = (
        derivatives(lambda x: attend_heads(x, 2)),
        derivatives(lambda x: _plain(x, 2)),
    )
    assert_close(actual, expected, torch.float64)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", [(0, 5, 12), (2, 0, 12)])
@torch.no_grad()
def test_nothing_gives_nothing(shape):
    for dtype in (torch.float32, torch.bfloat16):
        assert attend_heads(torch.randn(shape).to(dtype), 2).shape == (*shape[:2], 4)


@torch.no_grad()
def test_weights_of_many_images_are_not_stored_at_once():
    images = tuned.HEADS_TILE_LOGITS // (4 * 256**2)
    for some in (images, 5 * images):
        qkv = torch.randn(some, 256, 3 * 8).bfloat16()
        with ops.use_backend("products"), LargestTensor() as largest:
            attend_heads(qkv, 4)
        assert largest.bytes == 2 * tuned.HEADS_TILE_LOGITS


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("width", "heads"), [(150, 4), (10, 1), (24, -4), (24, 0)])
def test_heads_that_do_not_fit_are_an_error(width, heads):
    with torch.inference_mode(), pytest.raises(RuntimeError):
        attend_heads(torch.randn(2, 5, width), heads)


def test_the_layout_is_that_of_sdpa():
    qkv = torch.randn(2, 64, 3 * 8).bfloat16()
    q, k, v = qkv.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert attend_heads(qkv, 2).stride() == expected.stride()


def _call(tokens: int, dtype: torch.dtype, *, grad: bool = False) -> HeadsCall:
    return HeadsCall(torch.randn(2, tokens, 24).to(dtype).requires_grad_(grad), 2)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_the_kernel_without_gradients(dtype):
    assert HEADS.choose(_call(196, dtype)).name == "native"


@needs_products
@pytest.mark.parametrize(
    ("tokens", "grad", "path"),
    [(64, True, "reference"), (65, True, "sdpa"), (4096, False, "products")],
)
def test_auto_multiplies_bfloat16_where_the_kernel_cannot(tokens, grad, path):
    assert HEADS.choose(_call(tokens, torch.bfloat16, grad=grad)).name == path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_auto_takes_sdpa_for_gradients(dtype):
    assert HEADS.choose(_call(64, dtype, grad=True)).name == "sdpa"


@pytest.mark.parametrize(
    ("path", "call", "sentence"),
    [
        ("native", _call(4, torch.float32, grad=True), "it has no gradient"),
        ("native", _call(4, torch.float64), "float32 and bfloat16, got torch.float64"),
        ("native", HeadsCall(torch.empty(1, 4, 24, device="meta"), 2), "on the CPU, got meta"),
        ("products", _call(4, torch.float32, grad=True), "tensors that a gradient needs"),
        ("products", _call(0, torch.float32), "there is no token"),
        pytest.param("native", _call(0, torch.float32), "no token", marks=needs_kernels),
        pytest.param("native", _call(2049, torch.float32), "got 2049", marks=needs_kernels),
    ],
)
def test_a_path_says_why_it_cannot(path, call, sentence):
    with pytest.raises(ValueError, match=rf"backend '{path}' cannot compute .*{sentence}"):
        HEADS.choose(call, path)
