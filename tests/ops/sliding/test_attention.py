"""Attention to sliding windows: every path against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from convattn.ops.kernels.native.library import available
from tests.compare import assert_close, assert_same
from tests.ops.properties import OperatorProperties


def _maps(number: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(number)]


class SlidingWindow(OperatorProperties):
    """``options`` is a method, so that torch.compile takes what it returns for constants."""

    backend = "auto"

    def options(self) -> dict[str, Any]:
        return {}

    def fast(self, *tensors: Tensor) -> Tensor:
        return self.attend(*tensors, backend=self.backend)

    def reference(self, *tensors: Tensor) -> Tensor:
        return self.attend(*tensors, backend="reference")

    def attend(self, *tensors: Tensor, backend: str) -> Tensor:
        q, k, v, position = tensors
        return ops.sliding_window_attention(
            q, k, v, num_heads=2, position=position, backend=backend, **self.options()
        )

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        B, C, H, W = shape
        return [*_maps(3, shape, dtype), *_maps(1, (B, C // 2, H, W), dtype)]


class TestSlidingWindowInStrips(SlidingWindow):
    backend = "strips"

    def test_function_transforms_have_every_derivative(self):
        with pytest.raises(ValueError, match=r"no rule for torch\.func .*use backend='auto'"):
            super().test_function_transforms_have_every_derivative()

    def test_gradients_of_gradients_match_finite_differences(self):
        tensors = [t.requires_grad_() for t in self.inputs((1, 4, 3, 2), torch.float64)]
        torch.autograd.gradgradcheck(self.fast, tensors)


@pytest.mark.parametrize("backend", ["native", "strips"])
def test_an_activation_in_place_may_follow(backend):
    if backend == "native" and not available():
        pytest.skip("no C compiler")
    tensors = [t.requires_grad_() for t in _maps(3, (2, 8, 12, 11), torch.float32)]
    changed, plain = (
        torch.autograd.grad(
            f(ops.sliding_window_attention(*tensors, num_heads=2, backend=backend)).sum(), tensors
        )
        for f in (torch.relu_, torch.relu)
    )
    assert_close(changed, plain, torch.float32)


class TestSlidingWindowInStripsWithStride(TestSlidingWindowInStrips):
    def options(self) -> dict[str, Any]:
        return {"stride": 2, "window_size": 3}


class TestSlidingWindowInStripsWithDilation(TestSlidingWindowInStrips):
    test_compiles_whole = None  # one operator, as without

    def options(self) -> dict[str, Any]:
        return {"stride": 3, "dilation": 2, "window_size": 5}


class TestSlidingWindowInTiles(SlidingWindow):
    backend = "tiled"


class TestSlidingWindowInTilesWithStride(SlidingWindow):
    backend = "tiled"

    def options(self) -> dict[str, Any]:
        return {"stride": 2, "dilation": 3, "window_size": 5}


class TestSlidingWindowOfTheWholeMap(SlidingWindow):
    backend = "dense"

    def options(self) -> dict[str, Any]:
        return {"stride": 2, "window_size": 5}


class TestSlidingWindowByRule(SlidingWindow):
    test_compiles_whole = None  # as the path that it takes

    def options(self) -> dict[str, Any]:
        return {"window_size": 3}


@pytest.mark.parametrize("backend", ["strips", "tiled", "dense"])
@given(
    size=st.tuples(st.integers(1, 26), st.integers(1, 26)),
    window_size=st.sampled_from([1, 3, 5, 7, 11]),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 5),
)
def test_every_geometry_matches_the_reference(backend, size, window_size, stride, dilation):
    options = {"window_size": window_size, "stride": stride, "dilation": dilation}
    tensors = [*_maps(3, (1, 4, *size)), *_maps(1, (1, 2, *size))]

    def attend(backend: str) -> Any:
        return lambda q, k, v, position: ops.sliding_window_attention(
            q, k, v, num_heads=2, position=position, backend=backend, **options
        )

    assert_same(attend(backend), attend("reference"), tensors)


@given(
    size=st.tuples(st.integers(1, 22), st.integers(1, 9)),
    window_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
)
def test_bands_of_rows_without_gradients_match_the_reference(size, window_size, stride, dilation):
    options = {"window_size": window_size, "stride": stride, "dilation": dilation, "num_heads": 2}
    q, k, v = _maps(3, (2, 4, *size))
    dense, expected = (
        ops.sliding_window_attention(q, k, v, backend=backend, **options)
        for backend in ("dense", "reference")
    )
    assert_close(dense, expected, torch.float64)


BACKENDS = ["strips", "tiled", "dense", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_of_one_pixel_shows_its_value(backend):
    q, k, v = _maps(3, (2, 4, 5, 7))
    y = ops.sliding_window_attention(q, k, v, num_heads=2, window_size=1, stride=3, backend=backend)
    assert_close(y, v[:, :, ::3, ::3], torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_sees_its_dilated_window_and_nothing_else(backend):
    q, k, v = (x.requires_grad_() for x in _maps(3, (1, 4, 15, 17)))
    y = ops.sliding_window_attention(
        q, k, v, num_heads=2, window_size=3, dilation=3, backend=backend
    )
    y[0, :, 7, 8].sum().backward()
    for x in (k, v):
        assert x.grad is not None
        seen = x.grad.abs().sum(dim=(0, 1)).nonzero()
        assert seen.tolist() == [[i, j] for i in (4, 7, 10) for j in (5, 8, 11)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mirrored_pixel_counts_as_often_as_it_is_seen(backend):
    q = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    v = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    y = ops.sliding_window_attention(q, q, v, num_heads=1, window_size=5, backend=backend)
    # a row of three continues as 2 1 [0 1 2] 1 0, and a single row is all that a column shows
    shown = [[100, 10, 1, 10, 100], [10, 1, 10, 100, 10], [1, 10, 100, 10, 1]]
    expected = torch.tensor(shown, dtype=torch.float64).mean(dim=1).reshape(1, 1, 1, 3)
    assert_close(y, expected, torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_is_shared_by_the_batch(backend):
    q, k, v = _maps(3, (3, 8, 5, 6))
    (position,) = _maps(1, (1, 4, 5, 6))
    shared, repeated = (
        ops.sliding_window_attention(q, k, v, num_heads=2, position=p, backend=backend)
        for p in (position, position.expand(3, -1, -1, -1))
    )
    assert_close(shared, repeated, torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_that_is_the_same_everywhere_changes_nothing(backend):
    q, k, v = _maps(3, (1, 8, 5, 6))
    position = torch.randn(1, 4, 1, 1, dtype=torch.float64).expand(-1, -1, 5, 6)
    position = position.clone().requires_grad_()
    y = ops.sliding_window_attention(q, k, v, num_heads=2, position=position, backend=backend)
    assert_close(y, ops.sliding_window_attention(q, k, v, num_heads=2), torch.float64)
    (gradient,) = torch.autograd.grad(y.square().sum(), position)
    assert gradient.abs().max() > 1e-3
    assert_close(gradient.sum(dim=(2, 3)), torch.zeros(1, 4).double(), torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_multiplies_the_logits(backend):
    q, k, v = _maps(3, (1, 8, 6, 6))
    scaled = ops.sliding_window_attention(q, k, v, num_heads=2, scale=0.7, backend=backend)
    by_hand = ops.sliding_window_attention(0.7 * q, k, v, num_heads=2, scale=1.0, backend=backend)
    assert_close(scaled, by_hand, torch.float64)
    default = ops.sliding_window_attention(q, k, v, num_heads=2, scale=0.5, backend=backend)
    assert_close(default, ops.sliding_window_attention(q, k, v, num_heads=2), torch.float64)


ODD = "window_size must be odd, got 4; use 3 or 5"
WRONG_SLIDING: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 3}, "got channels of q=8, num_heads=3; the nearest num_heads that fits is 2"),
    ({"window_size": 4}, ODD),
    ({"window_size": -3}, "window_size must be at least 1, got -3"),
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"dilation": -1}, "dilation must be at least 1, got -1"),
    ({"backend": "tilled"}, "unknown backend 'tilled'; did you mean 'tiled'"),
    ({"k": torch.zeros(1, 8, 5, 7)}, r"q must have the size of k, \(5, 7\); got q \(1, 8, 5, 6\)"),
    ({"v": torch.zeros(1, 4, 5, 6)}, "k and v must have one shape"),
    ({"q": torch.zeros(8, 5, 6)}, r"q must have shape \(B, C, H, W\), got \(8, 5, 6\)"),
    ({"position": torch.zeros(1, 8, 5, 6)}, "position must have 4 channels"),
    ({"position": torch.zeros(1, 4, 5, 7)}, "position must have the size of k"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_SLIDING)
def test_sliding_window_rejects(change, message):
    arguments = {name: torch.zeros(1, 8, 5, 6) for name in ("q", "k", "v")}
    tensors = {name: change.get(name, x) for name, x in arguments.items()}
    options = {"num_heads": 2} | {k: x for k, x in change.items() if k not in arguments}
    if change.keys() == {"k"}:
        tensors["v"] = tensors["k"]
    with pytest.raises(ValueError, match=message):
        ops.sliding_window_attention(*tensors.values(), **options)


def test_queries_of_another_size_are_refused():
    q, k = torch.zeros(1, 8, 3, 2), torch.zeros(1, 8, 5, 6)
    message = r"the size of k, \(5, 6\), or \(3, 3\) for only the queries of stride=2; got q"
    with pytest.raises(ValueError, match=message):
        ops.sliding_window_attention(q, k, k, num_heads=2, stride=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "stride"), [((9, 12), 2), ((5, 7), 3), ((1, 2), 2)])
def test_the_queries_of_the_stride_are_enough(backend, size, stride):
    q, k, v = _maps(3, (2, 8, *size))
    position = torch.randn(1, 4, *size).double()
    options = {"num_heads": 2, "stride": stride, "position": position, "backend": backend}
    few = q[:, :, ::stride, ::stride].contiguous()
    assert_close(
        ops.sliding_window_attention(few, k, v, **options),
        ops.sliding_window_attention(q, k, v, **options),
        torch.float64,
    )


def test_integer_maps_are_refused():
    x = torch.ones(1, 8, 5, 6, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"q must be floating point, got torch\.int64"):
        ops.sliding_window_attention(x, x, x, num_heads=2)
