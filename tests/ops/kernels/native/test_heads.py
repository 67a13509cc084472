"""Heads of tokens and of windows in C, against the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from convattn.ops.kernels.native import heads, library
from tests.compare import assert_close
from tests.ops.kernels.native.test_sliding import build as build

pytestmark = pytest.mark.skipif(not library.available(), reason="no C compiler")

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def _unwritten(build: None) -> object:
    """Memory that nobody wrote is no number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _plain(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = qkv.double().unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / q.shape[3] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _tokens_match(qkv: Tensor, num_heads: int) -> None:
    y = heads.attend_tokens(qkv, num_heads)
    assert y.dtype == qkv.dtype
    assert_close(y.double(), _plain(qkv, num_heads), qkv.dtype)


@both_types
@given(
    batch=st.integers(0, 3),
    tokens=st.integers(1, 70),
    num_heads=st.sampled_from([1, 2, 3, 5, 12]),
    width=st.sampled_from([1, 2, 3, 8, 16, 17, 20, 32, 64]),
)
def test_tokens_attend(dtype, batch, tokens, num_heads, width):
    _tokens_match(torch.randn(batch, tokens, 3 * num_heads * width).to(dtype), num_heads)


@both_types
@pytest.mark.parametrize("tokens", [196, 197, 512, heads.MOST_TOKENS])
def test_many_tokens_attend(dtype, tokens):
    _tokens_match(torch.randn(1, tokens, 3 * 2 * 20).to(dtype), 2)


@both_types
def test_words_of_two_numbers_may_begin_anywhere(dtype):
    data = torch.randn(1 + 2 * 9 * 24).to(dtype)
    _tokens_match(data[1:].view(2, 9, 24), 2)


@both_types
@pytest.mark.parametrize("size", [30.0, 1e4, 1e18])
def test_large_logits_choose_the_largest(dtype, size):
    qkv = torch.randn(1, 21, 3 * 8).to(dtype)
    qkv[..., :8] = 1
    qkv[..., 8:16] = torch.randperm(21)[:, None] * size
    y = heads.attend_tokens(qkv, 1)
    largest = qkv[0, :, 8].argmax()
    assert_close(y[0], qkv[0, largest, 16:].expand(21, -1), dtype)


@both_types
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_where_it_is_shown(part, value, dtype):
    qkv = torch.randn(2, 19, 3, 2, 8).to(dtype)
    qkv[1, 18, part, 1, 7] = value
    y = heads.attend_tokens(qkv.flatten(2), 2)
    expected = _plain(qkv.flatten(2), 2)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y.isfinite().all()
    numbers = expected.isfinite()
    assert_close(y[numbers].double(), expected[numbers], dtype)


@both_types
def test_threads_change_no_bit(dtype, monkeypatch):
    qkv = torch.randn(5, 50, 3 * 60).to(dtype)
    alone = heads.attend_tokens(qkv, 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(heads.attend_tokens(qkv, 3), alone)


def _windows(x: Tensor, backend: str, **options: Any) -> Tensor:
    """Attend in windows of q, k and v, which are parts of one map."""
    return ops.window_attention(*x.chunk(3, 1), backend=backend, **options)


def _windows_match(x: Tensor, bias: Tensor | None = None, **options: Any) -> None:
    with torch.no_grad():
        y = _windows(x, "auto", bias=bias, **options)
        wide = None if bias is None else bias.double()
        expected = _windows(x.double(), "reference", bias=wide, **options)
    assert y.dtype == x.dtype
    assert_close(y.double(), expected, x.dtype)


def _record_masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the masks of the calls of the kernel from now on."""
    masks, attend = [], heads.attend_windows

    def recorded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        masks.append(None if mask is None else tuple(mask.shape))
        return attend(q, k, v, mask, **options)

    monkeypatch.setattr(heads, "attend_windows", recorded)
    return masks


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The masks of calls of the kernel."""
    return _record_masks(monkeypatch)


@both_types
@given(
    batch=st.integers(0, 2),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    num_heads=st.integers(1, 3),
    width=st.sampled_from([1, 2, 7, 16, 20]),
    window_size=st.integers(1, 9),
    shift=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    biased=st.booleans(),
    last=st.booleans(),
)
def test_windows_attend(dtype, batch, size, num_heads, width, window_size, shift, biased, last):
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(batch, 3 * num_heads * width, *size).to(dtype).contiguous(memory_format=layout)
    options = {"num_heads": num_heads, "window_size": window_size, "scale": 0.7}
    options["shift"] = tuple(s % window_size for s in shift)
    pixels = window_size**2
    bias = torch.randn(num_heads, pixels, pixels).to(dtype) if biased else None
    with pytest.MonkeyPatch.context() as patch:
        masks = _record_masks(patch)
        _windows_match(x, bias, **options)
    assert len(masks) == 1 or batch == 0


@pytest.mark.parametrize(
    ("size", "shift", "biased", "mask"),
    [
        ((6, 9), 0, False, None),
        ((6, 9), 0, True, (1, 2, 9, 16)),
        ((6, 9), 1, False, (6, 1, 9, 16)),
        ((6, 9), 1, True, (6, 2, 9, 16)),
        ((5, 7), 0, True, (6, 2, 9, 16)),
        ((2, 2), 0, False, (1, 1, 9, 16)),
    ],
)
@both_types
def test_masks_are_shared_where_they_are_equal(dtype, size, shift, biased, mask, in_place):
    bias = torch.randn(2, 9, 9).to(dtype) if biased else None
    x = torch.randn(2, 24, *size).to(dtype)
    _windows_match(x, bias, num_heads=2, window_size=3, shift=shift)
    assert in_place == [mask]


@both_types
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_bias_may_have_another_type(dtype, kind, shift, in_place):
    x, bias = torch.randn(2, 24, 6, 9).to(dtype), torch.randn(2, 9, 9).to(kind)
    _windows_match(x, bias, num_heads=2, window_size=3, shift=shift)
    assert in_place


@both_types
def test_pixels_may_be_hidden(dtype, in_place):
    x, bias = torch.randn(2, 24, 6, 9).to(dtype), torch.zeros(2, 9, 9)
    bias[0, :, 3:] = -torch.inf
    _windows_match(x, bias, num_heads=2, window_size=3)
    bias[1, 4] = -torch.inf  # a query that sees nothing
    y = _windows(x, "auto", bias=bias, num_heads=2, window_size=3)
    expected = _windows(x.double(), "reference", bias=bias.double(), num_heads=2, window_size=3)
    assert torch.equal(y.isnan(), expected.isnan())
    assert y.isnan().any()
    assert in_place


@both_types
def test_maps_lie_anywhere(dtype, in_place):
    x = torch.randn(2, 24, 6, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = _windows(x, "auto", num_heads=2, window_size=3)
    wide = torch.nn.functional.pad(x, (1, 2, 3, 1, 5, 2))
    views = [
        x.contiguous(),
        wide[:, 5:-2, 3:-1, 1:-2],
        x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3),
    ]
    for view in views:
        assert_close(_windows(view, "auto", num_heads=2, window_size=3), expected, dtype)
    one = x[:1, :, :1, :1].expand(2, -1, 6, 9)
    _windows_match(one, num_heads=2, window_size=3)
    assert len(in_place) == 5


def test_a_view_that_negates_is_read_as_it_says():
    x = torch.complex(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)).conj().imag
    parts = list(x.split(1, 1))
    assert parts[2].is_neg()
    y = ops.window_attention(*parts, num_heads=1, window_size=1)
    assert y.item() == -1


def test_kernels_refuse_channels_that_lie_apart():
    q = torch.randn(1, 8, 6, 6)
    with pytest.raises(ValueError, match="channels of a pixel must be contiguous"):
        heads.attend_windows(q, q, q, None, num_heads=2, window_size=3, scale=1.0)


@both_types
def test_large_windows_are_copied(dtype, in_place):
    x = torch.randn(1, 6, 50, 50).to(dtype)
    _windows_match(x, num_heads=1, window_size=46)
    assert not in_place
    _windows_match(x, num_heads=1, window_size=23)
    assert in_place
