from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from tests.compare import assert_same
from tests.memory import largest_tensor, saved_for_backward
from tests.ops.properties import OperatorProperties


def _maps(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3)]


class TestPixelShiftAttention(OperatorProperties):
    kernel_size, distance, stride = 3, 1, 1

    def fast(self, *tensors: Tensor) -> Tensor:
        return self._attend(*tensors, backend="auto")

    def reference(self, *tensors: Tensor) -> Tensor:
        return self._attend(*tensors, backend="reference")

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return _maps(shape, dtype)

    def _attend(self, *tensors: Tensor, backend: str) -> Tensor:
        return ops.pixel_shift_attention(
            *tensors,
            num_heads=2,
            kernel_size=self.kernel_size,
            distance=self.distance,
            stride=self.stride,
            backend=backend,
        )


class TestPixelShiftAttentionWithStride(TestPixelShiftAttention):
    stride = 2


class TestPixelShiftAttentionFarApart(TestPixelShiftAttention):
    kernel_size, distance, stride = 3, 2, 3


@given(
    st.tuples(*[st.integers(1, 8)] * 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_setting_matches_the_reference(shape, num_heads, kernel_size, distance, stride):
    B, H, W = shape

    def attend(*maps: Tensor, backend: str = "auto") -> Tensor:
        return ops.pixel_shift_attention(
            *maps,
            num_heads=num_heads,
            kernel_size=kernel_size,
            distance=distance,
            stride=stride,
            backend=backend,
        )

    maps = _maps((B, 4, H, W), torch.float64)
    assert_same(attend, lambda *ts: attend(*ts, backend="reference"), maps)


@pytest.mark.parametrize("backend", ["shifted", "reference"])
def test_is_the_sum_of_the_formula(backend):
    q, k, v = _maps((1, 4, 4, 5), torch.float64)
    expected = torch.zeros_like(v)
    for y in range(4):
        for x in range(5):
            for head in (slice(0, 2), slice(2, 4)):
                for j in range(max(0, y - 1), min(4, y + 2)):
                    for i in range(max(0, x - 1), min(5, x + 2)):
                        r = q[0, head, y, x] @ k[0, head, j, i] / (2**0.5 * 9)
                        expected[0, head, y, x] += r * v[0, head, j, i]
    actual = ops.pixel_shift_attention(q, k, v, num_heads=2, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["shifted", "reference"])
def test_scale_replaces_the_default(backend):
    q, k, v = _maps((1, 8, 5, 5), torch.float64)
    default = ops.pixel_shift_attention(q, k, v, num_heads=2, backend=backend)
    scaled = ops.pixel_shift_attention(q, k, v, num_heads=2, scale=3.0, backend=backend)
    torch.testing.assert_close(scaled, default * 3 * 2 * 9)


def _attention(backend: str) -> Callable[[], Tensor]:
    q, k, v = (t.requires_grad_() for t in _maps((2, 16, 24, 24), torch.float32))
    return lambda: ops.pixel_shift_attention(q, k, v, num_heads=2, backend=backend)


MAP = 2 * 16 * 24 * 24 * 4


def test_keys_and_values_are_never_copied_for_each_displacement():
    assert largest_tensor(_attention("shifted")) < 2 * MAP
    assert largest_tensor(_attention("reference")) >= 9 * MAP


def test_little_is_kept_for_backward():
    # Queries, padded keys, padded values, and the weights of nine displacements (2 of 16 channels).
    assert saved_for_backward(_attention("shifted")) < 6 * MAP
    assert saved_for_backward(_attention("reference")) > 18 * MAP


def test_maps_must_have_the_same_shape():
    q, k, v = _maps((1, 4, 4, 4), torch.float32)
    with pytest.raises(ValueError, match="v must have the shape of q, got"):
        ops.pixel_shift_attention(q, k, v[:, :2], num_heads=2)


def test_heads_must_divide_the_channels():
    maps = _maps((1, 6, 4, 4), torch.float32)
    with pytest.raises(ValueError, match="got channels=6, num_heads=4; the nearest num_heads"):
        ops.pixel_shift_attention(*maps, num_heads=4)


def test_a_kernel_must_be_odd():
    maps = _maps((1, 4, 4, 4), torch.float32)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; use 3 or 5"):
        ops.pixel_shift_attention(*maps, num_heads=2, kernel_size=4)


@pytest.mark.parametrize("name", ["stride", "distance", "num_heads"])
def test_sizes_must_be_positive(name):
    q, k, v = _maps((1, 4, 4, 4), torch.float32)
    sizes: dict[str, int] = {"num_heads": 2, "stride": 1, "distance": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ops.pixel_shift_attention(
            q,
            k,
            v,
            num_heads=sizes["num_heads"],
            stride=sizes["stride"],
            distance=sizes["distance"],
        )


def test_an_unknown_backend_suggests_the_nearest():
    maps = _maps((1, 4, 4, 4), torch.float32)
    with pytest.raises(ValueError, match="did you mean 'shifted'"):
        ops.pixel_shift_attention(*maps, num_heads=2, backend="shift")


def test_a_map_has_four_dimensions():
    maps = _maps((4, 4, 4), torch.float32)
    with pytest.raises(ValueError, match=r"q must have shape \(B, C, H, W\), got \(4, 4, 4\)"):
        ops.pixel_shift_attention(*maps, num_heads=2)
