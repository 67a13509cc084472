from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn import ops
from convattn.ops.kernels.native import library
from convattn.ops.processor import multiplies
from tests.calls import Calls
from tests.compare import assert_close
from tests.ops.properties import OperatorProperties

PATHS = ("products", "sdpa")


class TestWindow(OperatorProperties):
    """Weights are given flat, what has one dimension being shared by the images of a batch.

    They are of order 1, as are their gradients: `attend` divides by the channels.
    """

    shift: int | tuple[int, int] = 0

    def fast(self, *tensors: Tensor) -> Tensor:
        return self.attend(*tensors, backend="auto")

    def reference(self, *tensors: Tensor) -> Tensor:
        return self.attend(*tensors, backend="reference")

    def attend(self, *tensors: Tensor, backend: str) -> Tensor:
        x, weights, biases, bias = tensors
        C = x.shape[1]
        return ops.map_window_attention(
            x,
            list((weights / C).reshape(3, C, C, 1, 1).unbind()),
            [*biases.reshape(2, C).unbind(), None],
            num_heads=2,
            window_size=4,
            shift=self.shift,
            bias=bias.reshape(2, 16, 16),
            backend=backend,
        )

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        C = shape[1]
        tensors = [torch.randn(shape), torch.randn(3 * C**2), torch.randn(2 * C)]
        return [t.to(dtype) for t in (*tensors, torch.randn(2 * 16**2))]


class TestShiftedWindow(TestWindow):
    shift = (2, 1)


def attend(x: Tensor, function: Any = ops.map_window_attention, **options: Any) -> Tensor:
    C = x.shape[1]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(C, C, 1, 1, generator=generator).to(x.dtype) / C for _ in range(3)]
    options = {"num_heads": 2, "window_size": 3, "shift": 1, **options}
    if function is ops.window_attention:
        return function(*(F.conv2d(x, w) for w in weights), **options)
    return function(x, weights, [None] * 3, **options)


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 3), (1, 1)])
def test_it_is_window_attention_of_the_projections(size):
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    for shift in ((0, 0), (1, 2)):
        expected = attend(x, ops.window_attention, shift=shift, backend="reference")
        assert_close(attend(x, shift=shift), expected, torch.float64)


@pytest.mark.parametrize(
    ("dtype", "grad", "path"),
    [
        (torch.bfloat16, False, "products" if multiplies(torch.bfloat16) else "sdpa"),
        (torch.bfloat16, True, "sdpa"),
        (torch.float32, False, "sdpa"),
    ],
)
@pytest.mark.parametrize("function", [ops.map_window_attention, ops.window_attention])
def test_products_replace_the_fused_call_where_that_is_faster(function, dtype, grad, path):
    x = torch.randn(2, 8, 7, 6, dtype=dtype, requires_grad=grad)
    choice = ops.explain(attend, x, function)
    if not grad and library.available():
        assert choice.path == "native"
        assert choice.others["sdpa"] == "it comes after 'native' in the order of the paths"
        assert ("measured" in choice.others["products"]) == (path == "sdpa")
    else:
        assert choice.path == path


@pytest.mark.skipif(not library.available(), reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 9), (7, 5)])
@pytest.mark.parametrize("function", [ops.map_window_attention, ops.window_attention])
def test_windows_are_read_in_place_where_no_gradient_is_required(function, dtype, size):
    x, bias = torch.randn(2, 8, *size).to(dtype), torch.randn(2, 9, 9)
    expected = attend(x.double(), ops.window_attention, bias=bias.double(), backend="reference")
    with ops.record_paths() as taken:
        assert_close(attend(x, function, bias=bias).double(), expected, dtype)
        for leaf in (x, bias):
            leaf.requires_grad_()
            attend(x, function, bias=bias)
            with pytest.raises(ValueError, match="it has no gradient, and one is required"):
                attend(x, function, bias=bias, backend="native")
            leaf.requires_grad_(False)
    assert [choice.path for choice in taken] == ["native", "sdpa", "sdpa"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [ops.map_window_attention, ops.window_attention])
def test_a_path_that_is_named_is_taken(function, dtype):
    x = torch.randn(2, 8, 7, 6).to(dtype)
    expected = attend(x.double(), function, backend="reference")
    with torch.no_grad(), ops.record_paths() as taken:
        assert_close(attend(x, function, backend="sdpa").double(), expected, dtype)
        with ops.use_backend("sdpa"):
            attend(x, function)
    assert [choice.path for choice in taken] == ["sdpa", "sdpa"]


def test_the_fused_call_has_every_derivative_where_it_is_named():
    x, along = torch.randn(2, 1, 4, 5, 4, dtype=torch.float64)
    bias = torch.randn(2, 9, 9, dtype=torch.float64)

    def derivatives(backend: str) -> list[Tensor]:
        def loss(x: Tensor, bias: Tensor) -> Tensor:
            return attend(x, bias=bias, backend=backend).square().sum()

        slopes = torch.func.grad(loss, (0, 1))(x, bias)
        return [*slopes, *torch.func.jvp(lambda x: loss(x, bias), (x,), (along,))]

    assert_close(derivatives("sdpa"), derivatives("reference"), torch.float64)


@pytest.mark.parametrize("function", [ops.map_window_attention, ops.window_attention])
def test_products_and_the_fused_call_agree(function):
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    for bias in (None, torch.randn(2, 9, 9, dtype=torch.float64)):
        for shift, size in ((0, 6), (1, 7)):
            options = {"shift": shift, "bias": bias, "scale": 0.4}
            ways = [attend(x[:, :, :size], function, backend=b, **options) for b in PATHS]
            assert_close(ways[0], ways[1], torch.float64)


def test_the_map_is_copied_once_and_projected_once():
    x = torch.randn(2, 8, 6, 9).contiguous(memory_format=torch.channels_last)
    with Calls() as calls, torch.no_grad():
        attend(x, shift=0, backend="sdpa")
        copies = calls.count["clone"] + calls.count["copy_"]
    assert calls.count["convolution"] == 1
    assert copies == 2  # to windows, and back


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "channels of q must be a multiple of num_heads"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"shift": 3}, "shift must lie between 0 and window_size - 1 = 2"),
        ({"bias": torch.zeros(2, 4, 4)}, r"bias must have shape .* \(2, 9, 9\), got \(2, 4, 4\)"),
        ({"backend": "tiled"}, "unknown backend 'tiled'"),
    ],
)
def test_it_rejects(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attend(torch.randn(1, 8, 5, 5), **change)


@pytest.mark.parametrize(
    ("channels", "biases", "message"),
    [
        # together they could be taken for three of eight channels
        (
            (4, 8, 12),
            3,
            r"equally many channels, got weights \(4, 8, 1, 1\), \(8, 8, 1, 1\), \(12,",
        ),
        ((8, 8), 2, "must be three each, .*, got 2 and 2"),
        ((8, 8, 8), 2, "must be three each, .*, got 3 and 2"),
    ],
)
def test_its_projections_must_fit(channels, biases, message):
    weights = [torch.zeros(c, 8, 1, 1) for c in channels]
    with pytest.raises(ValueError, match=message):
        ops.map_window_attention(
            torch.zeros(1, 8, 5, 5), weights, [None] * biases, num_heads=2, window_size=3
        )
