from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from convattn.ops.acmix.convolution import BACKENDS
from convattn.ops.fuse import fold_fc_group_conv, shift_kernels
from tests.compare import assert_close, assert_same
from tests.memory import largest_tensor
from tests.ops.properties import OperatorProperties

HEADS = 2


def _random(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


class Convolution(OperatorProperties):
    """Weights are given flat: what has one dimension is shared by the images of a batch."""

    backend = "auto"
    kernel_size = 3
    bias = False
    stride = 1
    dilation = 1

    def fast(self, *tensors: Tensor) -> Tensor:
        return self.convolve(*tensors, backend=self.backend)

    def reference(self, *tensors: Tensor) -> Tensor:
        return self.convolve(*tensors, backend="reference")

    def convolve(self, *tensors: Tensor, backend: str) -> Tensor:
        q, k, v, fc_weight, dep_weight, *bias = tensors
        K = self.kernel_size
        return ops.acmix_convolution(
            q,
            k,
            v,
            fc_weight.reshape(K**2, -1),
            dep_weight.reshape(q.shape[1], K**2, K, K),
            head_dim=q.shape[1] // HEADS,
            fc_bias=bias[0] if bias else None,
            stride=self.stride,
            dilation=self.dilation,
            backend=backend,
        )

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        C, maps = shape[1], self.kernel_size**2
        weights = [_random((maps * 3 * HEADS,)) / 3, _random((C * maps**2,)) / maps]
        weights += [_random((maps,))] if self.bias else []
        return [*(_random(shape, dtype) for _ in range(3)), *(w.to(dtype) for w in weights)]


class TestFolded(Convolution):
    backend = "folded"


class TestFoldedWithBias(Convolution):
    test_compiles_whole = None  # as a part of the layer
    backend, bias, stride, dilation = "folded", True, 2, 2


class TestGrouped(Convolution):
    backend, kernel_size, stride = "grouped", 5, 2


class TestGroupedWithBias(Convolution):
    test_compiles_whole = None  # as a part of the layer
    backend, bias, dilation = "grouped", True, 3


class TestFoldedBefore(Convolution):
    test_compiles_whole = None  # as a part of the layer
    stride, dilation = 2, 2

    def fast(self, *tensors: Tensor) -> Tensor:
        q, k, v, fc_weight, dep_weight, *bias = tensors
        weight = torch.cat([fc_weight.reshape(9, -1), *(b[:, None] for b in bias)], dim=1)
        dep_weight, d = dep_weight.reshape(-1, 9, 3, 3), q.shape[1] // HEADS
        kernels = fold_fc_group_conv(weight, dep_weight, groups=d)
        return ops.folded_convolution(
            q, k, v, kernels, head_dim=d, stride=self.stride, dilation=self.dilation
        )


class TestFoldedBeforeWithBias(TestFoldedBefore):
    bias, stride, dilation = True, 1, 1


class TestShifts(Convolution):
    test_compiles_whole = None  # as a part of the layer
    bias, stride, dilation = True, 2, 2

    def fast(self, *tensors: Tensor) -> Tensor:
        q, k, v, fc_weight, _, fc_bias = tensors
        return ops.shift_convolution(
            q,
            k,
            v,
            fc_weight.reshape(9, -1),
            head_dim=q.shape[1] // HEADS,
            num_outputs=HEADS,
            fc_bias=fc_bias,
            stride=self.stride,
            dilation=self.dilation,
        )

    def convolve(self, *tensors: Tensor, backend: str) -> Tensor:
        q, k, v, fc_weight, dep_weight, fc_bias = tensors
        shifts = shift_kernels(3, q.shape[1], dtype=dep_weight.dtype).flatten()
        return super().convolve(q, k, v, fc_weight, shifts, fc_bias, backend=backend)


class TestDense(Convolution):
    """From the map that q, k and v are projected from."""

    path = "dense"
    bias, stride, dilation = True, 2, 1

    def fast(self, *tensors: Tensor) -> Tensor:
        x, weights, biases, fc_weight, dep_weight, fc_bias = self.shaped(*tensors)
        return ops.map_convolution(
            x,
            weights,
            biases,
            fc_weight,
            dep_weight,
            head_dim=x.shape[1] // HEADS,
            fc_bias=fc_bias,
            stride=self.stride,
            dilation=self.dilation,
            path=self.path,
        )

    def reference(self, *tensors: Tensor) -> Tensor:
        x, weights, biases, fc_weight, dep_weight, fc_bias = self.shaped(*tensors)
        q, k, v = (F.conv2d(x, w, b) for w, b in zip(weights, biases, strict=True))
        bias = [] if fc_bias is None else [fc_bias]
        return self.convolve(q, k, v, fc_weight, dep_weight, *bias, backend="reference")

    def shaped(self, *tensors: Tensor) -> tuple[Any, ...]:
        x, weights, biases, fc_weight, dep_weight, *bias = tensors
        C = x.shape[1]
        return (
            x,
            list(weights.reshape(3, C, C, 1, 1).unbind()),
            list(biases.reshape(3, C).unbind()),
            fc_weight.reshape(9, -1),
            dep_weight.reshape(C, 9, 3, 3),
            bias[0] if bias else None,
        )

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        C = shape[1]
        x, _, _, *rest = super().inputs(shape, dtype)
        projections = [_random((3 * C**2,)) / C, _random((3 * C,))]
        return [x, *(t.to(dtype) for t in projections), *rest]


class TestDenseWithDilation(TestDense):
    bias, stride, dilation = False, 1, 3


class TestConnected(TestDense):
    path = "connected"


class TestConnectedWithDilation(TestDenseWithDilation):
    path = "connected"


def test_the_map_has_a_known_path_and_the_channels_of_the_projections():
    x, weights = torch.zeros(1, 4, 5, 5), [torch.zeros(4, 4, 1, 1)] * 3
    rest = ([None] * 3, torch.zeros(9, 6), torch.zeros(4, 9, 3, 3))
    assert not ops.map_convolution(x, weights, *rest, head_dim=2).any()
    with pytest.raises(ValueError, match=r"unknown path .thick.\. Known: .dense., .connected."):
        ops.map_convolution(x, weights, *rest, head_dim=2, path="thick")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 3, 5, 5)}, r"of q must have shape \(.*, 3, 1, 1\) for x of shape"),
        ({"weights": [torch.zeros(4, 4, 1, 1)] * 2}, "must be three each, .*, got 2 and 3"),
        ({"biases": [None] * 2}, "must be three each, .*, got 3 and 2"),
        ({"biases": [None, torch.zeros(1), None]}, r"bias of k must have shape \(4,\), .* \(1,\)"),
        ({"weights": [torch.zeros(4, 4, 3, 3)] * 3}, r"weight of q .* got \(4, 4, 3, 3\)"),
        ({"head_dim": 3}, "channels of q=4, head_dim=3"),
        ({"fc_weight": torch.zeros(9, 5)}, "must take the 6 groups of 2 channels"),
        ({"fc_bias": torch.zeros(1)}, r"fc_bias must have shape \(9,\), .*, got \(1,\)"),
        ({"dep_weight": torch.zeros(3, 9, 3, 3)}, "outputs of dep_weight=3, head_dim=2"),
    ],
)
def test_projections_of_a_map_must_fit(change, message):
    arguments: dict[str, Any] = {
        "x": torch.zeros(1, 4, 5, 5),
        "weights": [torch.zeros(4, 4, 1, 1)] * 3,
        "biases": [None] * 3,
        "fc_weight": torch.zeros(9, 6),
        "dep_weight": torch.zeros(4, 9, 3, 3),
        "head_dim": 2,
    }
    with pytest.raises(ValueError, match=message):
        ops.map_convolution(**(arguments | change))


@given(
    groups=st.tuples(*[st.integers(1, 3)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 2),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    backend=st.sampled_from(["folded", "grouped", "auto"]),
)
def test_every_geometry_matches_the_reference(
    groups, size, kernel_size, stride, dilation, bias, backend
):
    d, maps = 2, kernel_size**2
    tensors = [_random((1, d * n, *size)) for n in groups]
    tensors += [_random((maps, sum(groups))), _random((3 * d, maps, kernel_size, kernel_size))]
    tensors += [_random((maps,))] if bias else []

    def convolve(backend: str) -> Any:
        return lambda q, k, v, fc, dep, fc_bias=None: ops.acmix_convolution(
            q,
            k,
            v,
            fc,
            dep,
            head_dim=d,
            fc_bias=fc_bias,
            stride=stride,
            dilation=dilation,
            backend=backend,
        )

    assert_same(convolve(backend), convolve("reference"), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_starts_as_a_sum_of_shifted_maps(backend):
    q, k, v = (_random((1, 4, 5, 6)) for _ in range(3))
    fc = _random((9, 6))
    y = ops.acmix_convolution(
        q, k, v, fc, shift_kernels(3, 4).double(), head_dim=2, backend=backend
    )
    expected = torch.zeros(2, 5, 6, dtype=torch.float64)
    maps = [x[0, n : n + 2] for x in (q, k, v) for n in (0, 2)]
    for m in range(9):
        f = F.pad(sum((fc[m, j] * maps[j] for j in range(6)), start=torch.zeros(1)), (1, 1, 1, 1))
        expected += f[:, m // 3 : m // 3 + 5, m % 3 : m % 3 + 6]
    # channels in the order (d, N): each channel of a group comes N times
    assert_close(y[0], expected.repeat_interleave(2, dim=0), torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_channel_of_a_group_gives_neighbouring_outputs(backend):
    v = torch.zeros(1, 6, 4, 4).index_fill(1, torch.tensor([1, 4]), 1.0)
    zero = torch.zeros_like(v)
    dep = torch.ones(6, 9, 3, 3)
    y = ops.acmix_convolution(zero, zero, v, torch.ones(9, 6), dep, head_dim=3, backend=backend)
    assert y.abs().sum(dim=(0, 2, 3)).nonzero().flatten().tolist() == [2, 3]


@pytest.mark.parametrize(
    ("heads", "stride", "folds"),
    [(1, 1, True), (4, 1, True), (5, 1, False), (5, 2, True), (8, 2, False)],
)
def test_auto_folds_while_that_is_no_more_work(monkeypatch, heads, stride, folds):
    folded = []

    def fold(*arguments: Any, **options: Any) -> Tensor:
        folded.append(True)
        return fold_fc_group_conv(*arguments, **options)

    monkeypatch.setattr("convattn.ops.acmix.convolution.fold_fc_group_conv", fold)
    x, fc, dep = (torch.zeros(s) for s in ((1, heads, 4, 4), (9, 3 * heads), (heads, 9, 3, 3)))
    ops.acmix_convolution(x, x, x, fc, dep, head_dim=1, stride=stride)
    assert bool(folded) == folds


def test_the_folded_path_never_makes_the_maps_between_the_layers():
    q, k, v = (torch.randn(1, 2, 16, 16, requires_grad=True) for _ in range(3))
    fc, dep = torch.randn(9, 3), torch.randn(2, 9, 3, 3)

    def largest(backend: str) -> int:
        return largest_tensor(
            lambda: ops.acmix_convolution(q, k, v, fc, dep, head_dim=2, backend=backend)
        )

    between = 2 * 9 * 16 * 16 * 4
    assert largest("folded") < between <= largest("grouped")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": 3}, "channels of q=8, head_dim=3; the nearest head_dim that fits is 2"),
    ({"stride": -1}, "stride must be at least 1, got -1"),
    ({"dilation": 0}, "dilation must be at least 1, got 0"),
    ({"backend": "fold"}, "unknown backend 'fold'; did you mean 'folded'"),
    ({"q": torch.zeros(8, 5, 6)}, r"q must have shape \(B, C, H, W\)"),
    ({"v": torch.zeros(1, 8, 5, 5)}, "q, k and v must have one size"),
    ({"v": torch.zeros(1, 4, 5, 6)}, "must take the 10 groups of 2 channels"),
    ({"dep_weight": torch.zeros(8, 9, 4, 4)}, "must be odd, got 4"),
    ({"dep_weight": torch.zeros(8, 25, 5, 5)}, "must take the 9 maps that fc_weight gives"),
    ({"dep_weight": torch.zeros(8, 9, 3, 5)}, r"must have shape \(d N, K\^2, K, K\), got"),
    ({"dep_weight": torch.zeros(8, 9, 3)}, r"must have shape \(d N, K\^2, K, K\), got"),
    ({"fc_weight": torch.zeros(12)}, r"have shape \(K\^2, 12\) or .*, got \(12,\)"),
    ({"fc_weight": torch.zeros(9, 12, 3, 3)}, r"or \(K\^2, 12, 1, 1\), got \(9, 12, 3, 3\)"),
    ({"fc_bias": torch.zeros(8)}, r"fc_bias must have shape \(9,\), .*, got \(8,\)"),
    ({"dep_weight": torch.zeros(7, 9, 3, 3)}, "outputs of dep_weight=7, head_dim=2"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_rejects(change, message):
    arguments: dict[str, Any] = {name: torch.zeros(1, 8, 5, 6) for name in ("q", "k", "v")}
    arguments |= {"fc_weight": torch.zeros(9, 12), "dep_weight": torch.zeros(8, 9, 3, 3)}
    with pytest.raises(ValueError, match=message):
        ops.acmix_convolution(**(arguments | {"head_dim": 2} | change))


def test_shifts_need_a_square_number_of_maps():
    x = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="K\\^2 maps of an odd K, got 8"):
        ops.shift_convolution(x, x, x, torch.zeros(8, 3), head_dim=2, num_outputs=1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 7, 3), r"shape \(d N, 6, K, K\), or 7 in place of 6 with a bias, got \(8, 7, 3\)"),
        ((8, 6, 3, 5), r"got \(8, 6, 3, 5\)"),
        ((8, 8, 3, 3), r"got \(8, 8, 3, 3\)"),
        ((8, 6, 2, 2), "kernel size of kernels must be odd, got 2"),
        ((9, 6, 3, 3), "outputs of kernels must be a multiple of head_dim"),
    ],
)
def test_kernels_folded_before_must_fit(shape, message):
    x = torch.randn(1, 8, 5, 5)
    with pytest.raises(ValueError, match=message):
        ops.folded_convolution(x, x, x, torch.zeros(shape), head_dim=4)
