from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel

from convattn import ops
from convattn.ops.patchwise.aggregate import neighbourhoods
from tests.compare import assert_close, assert_same
from tests.memory import largest_tensor, saved_for_backward
from tests.ops.properties import OperatorProperties


def _maps(number: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(number)]


class TestWindow(OperatorProperties):
    shift: int | tuple[int, int] = 0

    def fast(self, *tensors: Tensor) -> Tensor:
        return self.attend(*tensors, backend="sdpa")

    def reference(self, *tensors: Tensor) -> Tensor:
        return self.attend(*tensors, backend="reference")

    def attend(self, *tensors: Tensor, backend: str) -> Tensor:
        q, k, v, bias = tensors
        bias = bias.reshape(2, 9, 9)  # one dimension, so that it is not taken for a batch
        return ops.window_attention(
            q, k, v, num_heads=2, window_size=3, shift=self.shift, bias=bias, backend=backend
        )

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return [*_maps(3, shape, dtype), *_maps(1, (2 * 9 * 9,), dtype)]


class TestShiftedWindow(TestWindow):
    test_compiles_whole = None  # as a part of the layer
    shift = (1, 2)


class TestGlobal(OperatorProperties):
    def fast(self, *tensors: Tensor) -> Tensor:
        return ops.global_attention(*tensors, num_heads=2, backend="sdpa")

    def reference(self, *tensors: Tensor) -> Tensor:
        return ops.global_attention(*tensors, num_heads=2, backend="reference")

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        B, C, H, W = shape
        return [*_maps(1, shape, dtype), *_maps(2, (B, C, -(-H // 2), -(-W // 3)), dtype)]


def test_a_gradient_of_the_gradient_of_global_attention_needs_plain_products():
    tensors = [x.requires_grad_() for x in _maps(3, (1, 4, 3, 2))]

    def attend(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return ops.global_attention(*tensors, num_heads=2)

    torch.autograd.gradgradcheck(attend, tensors)


class TestPatchwise(OperatorProperties):
    def options(self) -> dict[str, Any]:
        return {"kernel_size": 3, "stride": 2, "dilation": 2}

    def fast(self, *tensors: Tensor) -> Tensor:
        return ops.patchwise_aggregate(*tensors, **self.options())

    def reference(self, *tensors: Tensor) -> Tensor:
        return ops.patchwise_aggregate(*tensors, **self.options(), backend="reference")

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        B, C, H, W = shape
        weights = torch.randn(B, C // 2, 9, -(-H // 2), -(-W // 2), dtype=torch.float64) / 3
        return [weights.to(dtype), *_maps(1, shape, dtype)]


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    window_size=st.integers(1, 8),
    shift=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_every_grid_of_windows_matches_the_reference(size, window_size, shift):
    rows, columns = (x % window_size for x in shift)

    def attend(backend: str) -> Any:
        return lambda q, k, v: ops.window_attention(
            q,
            k,
            v,
            num_heads=2,
            window_size=window_size,
            shift=(rows, columns),
            backend=backend,
        )

    assert_same(attend("sdpa"), attend("reference"), _maps(3, (1, 4, *size)))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, (1, 2)])
def test_windows_compile_for_maps_that_they_fill_and_for_all_others(shift):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.window_attention(q, k, v, num_heads=2, window_size=3, shift=shift)

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    for size in [(6, 9), (7, 9), (9, 8), (10, 11), (12, 15), (16, 6)]:
        maps = _maps(3, (2, 4, *size))
        assert_close(compiled(*maps), attend(*maps), torch.float64)
    assert counter.frame_count == 2


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel_size=st.sampled_from([1, 3, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
)
def test_every_patch_matches_the_reference(size, kernel_size, stride, dilation):
    options = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    answered = (-(-n // stride) for n in size)
    weights = torch.randn(1, 2, kernel_size**2, *answered, dtype=torch.float64)

    def aggregate(backend: str) -> Any:
        return lambda w, v: ops.patchwise_aggregate(w, v, backend=backend, **options)

    assert_same(aggregate("taps"), aggregate("reference"), [weights, *_maps(1, (1, 6, *size))])


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_wrapped_pixels_and_padding_are_not_seen(backend):
    q, k, v = (x.requires_grad_() for x in _maps(3, (1, 4, 8, 11)))
    y = ops.window_attention(q, k, v, num_heads=2, window_size=4, shift=(1, 2), backend=backend)
    y[0, :, 5, 8].sum().backward()
    assert v.grad is not None
    seen = v.grad.abs().sum(dim=(0, 1)).nonzero()
    # its window spans rows 4 to 7, columns 8 to 10; row 7 and columns 9, 10 were rolled there
    assert seen.tolist() == [[4, 8], [5, 8], [6, 8]]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_window_larger_than_the_map_is_global_attention(backend):
    q, k, v = _maps(3, (2, 8, 5, 6))
    y = ops.window_attention(q, k, v, num_heads=2, window_size=9, backend=backend)
    assert_close(y, ops.global_attention(q, k, v, num_heads=2), torch.float64)


def test_patchwise_weights_are_dealt_out_in_turn():
    weights, v = torch.randn(1, 2, 1, 3, 3), torch.randn(1, 6, 3, 3)
    y = ops.patchwise_aggregate(weights, v, kernel_size=1)
    expected = torch.stack([weights[:, c % 2, 0] * v[:, c] for c in range(6)], dim=1)
    assert_close(y, expected, torch.float32)


def test_neighbourhoods_are_channel_major():
    x = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    shown = neighbourhoods(x, kernel_size=3)
    assert shown.shape == (1, 2, 9, 3, 4)
    assert_close(shown[:, :, 4], x, torch.float32)
    assert shown[0, 1, :, 1, 1].tolist() == x[0, 1, 0:3, 0:3].flatten().tolist()


MAP = (2, 16, 28, 28)
MAP_BYTES = 2 * 16 * 28 * 28 * 4


def _sliding(backend: str, stride: int) -> Any:
    q, k, v = (x.requires_grad_() for x in _maps(3, MAP, torch.float32))
    return lambda: ops.sliding_window_attention(
        q, k, v, num_heads=2, stride=stride, backend=backend
    )


def _patchwise(backend: str, stride: int) -> Any:
    (v,) = _maps(1, MAP, torch.float32)
    size = -(-28 // stride)
    weights = torch.randn(2, 1, 49, size, size, requires_grad=True)
    v.requires_grad_()
    return lambda: ops.patchwise_aggregate(
        weights, v, kernel_size=7, stride=stride, backend=backend
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("attend", "fast"), [(_sliding, "tiled"), (_patchwise, "taps")])
def test_keys_and_values_are_never_copied_for_every_window(attend, fast, stride):
    a_few_copies = 5 * MAP_BYTES
    assert largest_tensor(attend(fast, stride)) < a_few_copies
    assert largest_tensor(attend("reference", stride)) > 2 * a_few_copies


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("attend", "fast"), [(_sliding, "tiled"), (_patchwise, "taps")])
def test_no_such_copy_is_kept_for_backward(attend, fast, stride):
    a_few_copies = 10 * MAP_BYTES  # of keys, values and queries together
    assert saved_for_backward(attend(fast, stride)) < a_few_copies
    assert saved_for_backward(attend("reference", stride)) > 1.2 * a_few_copies


WRONG_WINDOW: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 5}, "the nearest num_heads that fits is 4"),
    ({"window_size": 0}, "window_size must be at least 1, got 0"),
    ({"shift": 7}, r"shift must lie between 0 and window_size - 1 = 6, got \(7, 7\)"),
    ({"shift": (1, -1)}, "shift must lie between"),
    ({"bias": torch.zeros(2, 9, 9)}, r"= \(2, 49, 49\), got \(2, 9, 9\)"),
    ({"backend": "tiled"}, "unknown backend 'tiled'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_WINDOW)
def test_window_rejects(change, message):
    maps = [torch.zeros(1, 8, 5, 6)] * 3
    with pytest.raises(ValueError, match=message):
        ops.window_attention(*maps, **({"num_heads": 2} | change))


@pytest.mark.parametrize("shift", [None, 1.5, "3", (1,), (1.5, 0)])
def test_a_shift_is_one_integer_or_two(shift):
    maps = [torch.zeros(1, 8, 5, 6)] * 3
    with pytest.raises(TypeError, match=r"shift must be an integer or \(rows, columns\), got"):
        ops.window_attention(*maps, num_heads=2, shift=shift)


@pytest.mark.parametrize("wrong", [None, [1.0], 3])
def test_what_is_no_tensor_is_named(wrong):
    x = torch.zeros(1, 8, 5, 6)
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"k must be a tensor, got {kind}"):
        ops.sliding_window_attention(x, wrong, x, num_heads=2)
    with pytest.raises(TypeError, match=f"weights must be a tensor, got {kind}"):
        ops.patchwise_aggregate(wrong, x)


def test_global_rejects_keys_of_another_width():
    q, k = torch.zeros(1, 8, 5, 6), torch.zeros(1, 6, 5, 6)
    with pytest.raises(ValueError, match="k must have 8 channels"):
        ops.global_attention(q, k, k, num_heads=2)


WRONG_PATCHWISE: list[tuple[tuple[int, ...], str]] = [
    ((1, 2, 9, 5, 5), r"must have shape \(1, M, 9, 5, 6\), got \(1, 2, 9, 5, 5\)"),
    ((1, 18, 5, 6), r"must have shape \(1, M, 9, 5, 6\)"),
    ((3,), r"must have shape \(1, M, 9, 5, 6\), got \(3,\)"),
    ((2, 2, 9, 5, 6), r"must have shape \(1, M, 9, 5, 6\), got \(2, 2, 9, 5, 6\)"),
    ((1, 3, 9, 5, 6), "the nearest weight maps that fits is 2"),
]


@pytest.mark.parametrize(("shape", "message"), WRONG_PATCHWISE)
def test_patchwise_rejects(shape, message):
    with pytest.raises(ValueError, match=message):
        ops.patchwise_aggregate(torch.zeros(shape), torch.zeros(1, 8, 5, 6), kernel_size=3)
