"""Maps interpolated by matrices are those of PyTorch's interpolation, with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from convattn import ops
from convattn.ops.resampling.resize import resize
from tests.compare import assert_same

MODES = ("bilinear", "bicubic")
SIZES = [(3, 5), (7, 4), (14, 14), (9, 30), (1, 1)]


def interpolate(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=mode == "bicubic")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_are_those_of_interpolate(mode, size, dtype):
    x = torch.randn(2, 3, 7, 10, dtype=dtype)
    assert_same(lambda x: resize(x, size, mode), lambda x: interpolate(x, size, mode), [x])
    assert torch.equal(resize(x, size, mode), interpolate(x, size, mode))  # no gradient is wanted


def test_products_are_taken_where_a_gradient_is_required():
    x = torch.randn(1, 3, 7, 10)
    assert ops.explain(resize, x, (5, 6), "bilinear").path == "reference"
    x.requires_grad_()
    assert ops.explain(resize, x, (5, 6), "bilinear").path == "products"
    with ops.use_backend("reference"):
        assert torch.equal(resize(x, (5, 6), "bilinear"), interpolate(x, (5, 6), "bilinear"))


@pytest.mark.parametrize("mode", MODES)
def test_autocast_and_half_precision_are_computed_in_float32(mode):
    x = torch.randn(1, 3, 7, 10, requires_grad=True)
    expected = resize(x, (5, 6), mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize(x, (5, 6), mode), expected)
    y = resize(x.bfloat16(), (5, 6), mode)
    assert y.dtype == torch.float32
    assert torch.equal(y, resize(x.bfloat16().float(), (5, 6), mode))


def test_bicubic_is_how_timm_resamples_positions():
    positions = torch.randn(1, 14 * 14, 8, requires_grad=True)
    expected = resample_abs_pos_embed(positions, [10, 17], [14, 14], num_prefix_tokens=0)
    grid = positions.transpose(1, 2).unflatten(2, (14, 14))
    ours = resize(grid, (10, 17), "bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, expected)
