from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native import rows
from convattn.ops.processor import multiplies
from convattn.ops.tokens import heads as _heads
from convattn.ops.tokens.heads import attend_heads
from tests.compare import assert_close, values_and_gradients
from tests.memory import LargestTensor


def _plain(qkv: Tensor, num_heads: int) -> Tensor:
    B, N, width = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / (width / 3 / num_heads) ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, N, width // 3)


@pytest.fixture(params=["auto", "no compiler", "products", "products of one image"])
def path(request, monkeypatch):
    if request.param == "no compiler":
        monkeypatch.setattr(rows, "available", lambda: False)
    elif request.param != "auto":
        monkeypatch.setattr(_heads, "RULES", (("products", lambda _: True, ""),))
    if request.param == "products of one image":
        monkeypatch.setattr(_heads, "TILE_LOGITS", 1)
    return request.param


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (5, 2), (64, 4), (70, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_softmax_attention_of_each_head(dtype, tokens, heads):
    qkv = torch.randn(3, tokens, 3 * heads * 6).to(dtype)
    expected = values_and_gradients(lambda x: _plain(x, heads), [qkv.double()])
    actual = values_and_gradients(lambda x: attend_heads(x, heads), [qkv])
    with torch.inference_mode():
        inferred = attend_heads(qkv, heads)
    assert inferred.dtype == actual[0].dtype == dtype
    assert_close([t.double() for t in (*actual, inferred)], [*expected, expected[0]], dtype)


@pytest.mark.usefixtures("path")
def test_gradients_match_finite_differences():
    qkv = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: attend_heads(x, 2), [qkv])


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
def test_no_image_gives_no_tokens():
    assert attend_heads(torch.randn(0, 5, 12), 2).shape == (0, 5, 4)


@pytest.mark.skipif(not multiplies(torch.bfloat16), reason="the fused call is faster here")
def test_weights_of_many_images_are_not_stored_at_once():
    images = _heads.TILE_LOGITS // (4 * 256**2)
    for some in (images, 5 * images):
        qkv = torch.randn(some, 256, 3 * 8).bfloat16()
        with torch.no_grad(), LargestTensor() as largest:
            attend_heads(qkv, 4)
        assert largest.bytes == 2 * _heads.TILE_LOGITS


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("width", "heads"), [(150, 4), (10, 1), (24, -4), (24, 0)])
def test_heads_that_do_not_fit_are_an_error(width, heads):
    with torch.inference_mode(), pytest.raises(RuntimeError):
        attend_heads(torch.randn(2, 5, width), heads)


def test_matches_sdpa_in_layout():
    qkv = torch.randn(2, 64, 3 * 8).bfloat16()
    q, k, v = qkv.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert attend_heads(qkv, 2).stride() == expected.stride()
