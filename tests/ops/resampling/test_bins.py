"""Bins are averaged alike with and without gradients, by products and by adaptive pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.resampling.bins import average_bins
from tests.compare import assert_close, assert_same


def adaptive(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (5, 17), (1, 1)])
def test_values_and_gradients_are_those_of_adaptive_pooling(size, layout):
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    assert_same(lambda x: average_bins(x, (8, 5)), lambda x: adaptive(x, (8, 5)), [x])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gradient_costs_no_precision(dtype):
    x = (1000 * torch.rand(2, 3, 56, 56)).to(dtype)  # sums of bins would leave float16
    y = average_bins(x.clone().requires_grad_(), (8, 8))
    assert y.dtype == dtype
    assert_close(y.detach(), average_bins(x, (8, 8)), dtype)
    wide = x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(average_bins(wide, (8, 8)), adaptive(wide, (8, 8)), torch.float32)
