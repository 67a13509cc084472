"""Bins are averaged alike with and without gradients, by products and by adaptive pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn import ops
from convattn.ops.resampling.bins import average_bins
from tests.compare import assert_close, assert_same


def adaptive(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (5, 17), (1, 1)])
def test_values_and_gradients_are_those_of_adaptive_pooling(size, layout):
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    assert_same(lambda x: average_bins(x, (8, 5)), lambda x: adaptive(x, (8, 5)), [x])


def _path(x: Tensor) -> str:
    return ops.explain(average_bins, x, (3, 4)).path


def test_products_are_taken_where_a_gradient_is_required():
    x = torch.randn(1, 2, 9, 7)
    assert _path(x) == "reference"
    assert _path(x.requires_grad_()) == "products"
    with torch.no_grad():
        assert _path(x) == "reference"
    with ops.use_backend("reference"):
        assert _path(x) == "reference"


def test_an_export_has_products_whatever_is_named():
    class Average(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return average_bins(x, (3, 4))

    x = torch.randn(1, 2, 9, 7)
    for backend in ("auto", "reference"):
        with ops.use_backend(backend):
            graph = torch.export.export(Average(), (x,)).graph
        assert "adaptive" not in str(graph)
        assert "matmul" in str(graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gradient_costs_no_precision(dtype):
    x = (1000 * torch.rand(2, 3, 56, 56)).to(dtype)  # sums of bins would leave float16
    y = average_bins(x.clone().requires_grad_(), (8, 8))
    assert y.dtype == dtype
    assert_close(y.detach(), average_bins(x, (8, 8)), dtype)
    wide = x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(average_bins(wide, (8, 8)), adaptive(wide, (8, 8)), torch.float32)
