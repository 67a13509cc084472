"""The convolution path of ACmix from the map that q, k and v are projections of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from convattn.ops.acmix.from_map import CONVOLUTION_PATH
from tests.compare import assert_close
from tests.ops.acmix.test_convolution import HEADS, Convolution, randn


class TestDense(Convolution):
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
        projections = [randn((3 * C**2,)) / C, randn((3 * C,))]
        return [x, *(t.to(dtype) for t in projections), *rest]


class TestDenseWithDilation(TestDense):
    bias, stride, dilation = False, 1, 3


class TestConnected(TestDense):
    path = "connected"


class TestConnectedWithDilation(TestDenseWithDilation):
    path = "connected"


@given(
    groups=st.tuples(*[st.integers(1, 3)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 2),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    biases=st.tuples(*[st.booleans()] * 2),
    path=st.sampled_from(CONVOLUTION_PATH.backends),
)
def test_every_path_computes_every_geometry(
    groups, size, kernel_size, stride, dilation, biases, path
):
    d, maps, C_in = 2, kernel_size**2, 3
    x = randn((2, C_in, *size))
    weights = [randn((d * n, C_in, 1, 1)) for n in groups]
    projection_biases = [randn((d * n,)) if biases[0] else None for n in groups]
    fc, dep = randn((maps, sum(groups))), randn((3 * d, maps, kernel_size, kernel_size))
    sizes: dict[str, Any] = {"head_dim": d, "stride": stride, "dilation": dilation}
    sizes["fc_bias"] = randn((maps,)) if biases[1] else None
    y = ops.map_convolution(x, weights, projection_biases, fc, dep, path=path, **sizes)
    q, k, v = (F.conv2d(x, w, b) for w, b in zip(weights, projection_biases, strict=True))
    expected = ops.acmix_convolution(q, k, v, fc, dep, backend="reference", **sizes)
    assert_close(y, expected, torch.float64)


def test_an_unknown_path_is_an_error():
    x, weights = torch.zeros(1, 4, 5, 5), [torch.zeros(4, 4, 1, 1)] * 3
    rest = ([None] * 3, torch.zeros(9, 6), torch.zeros(4, 9, 3, 3))
    with pytest.raises(ValueError, match=r"unknown path .thick.\. Known: .dense., .connected."):
        ops.map_convolution(x, weights, *rest, head_dim=2, path="thick")


@pytest.mark.parametrize(
    ("in_chans", "heads", "options", "path"),
    [
        (64, 4, {}, "dense"),
        (128, 4, {}, "dense"),
        (129, 4, {}, "projected"),
        (256, 4, {}, "projected"),
        (256, 4, {"alone": True}, "connected"),
        (256, 4, {"stride": 2}, "dense"),
        (192, 6, {}, "connected"),
        (64, 4, {"backend": "grouped"}, "projected"),
        (64, 4, {"backend": "folded"}, "projected"),
        (64, 4, {"backend": "reference"}, "projected"),
    ],
)
def test_the_widths_decide_what_is_convolved(in_chans, heads, options, path):
    x, sizes = torch.empty(1, in_chans, 3, 3), {"head_dim": 8, "out_chans": 8 * heads}
    assert ops.convolution_path(x, **sizes, **options) == path
    assert ops.explain(ops.convolution_path, x, **sizes, **options).because
    assert ops.convolution_path(x.to("meta"), **sizes, **options) == "projected"
    for backend in ("reference", "grouped"):
        with ops.use_backend(backend):
            assert ops.convolution_path(x, **sizes, **options) == "projected"


def test_a_traced_layer_keeps_its_own_operators():
    taken = []

    def convolve(x: Tensor) -> Tensor:
        taken.append(ops.convolution_path(x, head_dim=2, out_chans=8))
        return x

    torch.jit.trace(convolve, torch.zeros(1, 4, 5, 5), check_trace=False)
    convolve(torch.zeros(1, 4, 5, 5))
    assert taken == ["projected", "dense"]


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
