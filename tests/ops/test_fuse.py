from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convattn.ops.fuse import fold_fc_group_conv, shift_kernels
from tests.compare import assert_close


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_shift_kernels_move_each_map_to_its_place(kernel_size):
    reach, maps = kernel_size // 2, kernel_size**2
    x = torch.randn(2, maps, 6, 7)
    y = F.conv2d(x, shift_kernels(kernel_size, 4), padding=reach)
    padded = F.pad(x, (reach, reach, reach, reach))
    expected = torch.zeros(2, 6, 7)
    for m in range(maps):
        top, left = divmod(m, kernel_size)
        expected += padded[:, m, top : top + 6, left : left + 7]
    assert_close(y, expected[:, None].expand_as(y), torch.float32)


def test_shift_kernels_follow_dtype_and_device():
    kernels = shift_kernels(3, 2, dtype=torch.float16, device="meta")
    assert kernels.dtype == torch.float16
    assert kernels.is_meta
    assert kernels.shape == (2, 9, 3, 3)


def test_shift_kernels_must_be_odd():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; use 3 or 5"):
        shift_kernels(4, 2)


@pytest.mark.parametrize("shape", [(9, 6), (9, 6, 1, 1)])
def test_the_folded_convolution_is_both_layers(shape):
    d, heads = 4, 2
    fc, dep = torch.randn(shape).double(), torch.randn(d * heads, 9, 3, 3).double()
    x = torch.randn(2, d, 6, 5, 7).double()
    features = torch.einsum("mj,bdjhw->bdmhw", fc.flatten(1), x)
    apart = F.conv2d(features.flatten(1, 2), dep, padding=1, groups=d)
    folded = fold_fc_group_conv(fc, dep, groups=d)
    assert folded.shape == (d * heads, 6, 3, 3)
    assert_close(F.conv2d(x.flatten(1, 2), folded, padding=1, groups=d), apart, torch.float64)


@pytest.mark.parametrize(
    ("groups", "maps", "message"),
    [
        (3, 9, "the nearest groups that fits is 2"),
        (4, 25, "must take the maps that fc_weight gives"),
    ],
)
def test_folding_rejects(groups, maps, message):
    with pytest.raises(ValueError, match=message):
        fold_fc_group_conv(torch.zeros(maps, 6), torch.zeros(8, 9, 3, 3), groups=groups)
