from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.ops.fuse import (
    add_identity,
    affine_before,
    batch_norm_factors,
    fold_fc_group_conv,
    scale_outputs,
    shift_kernels,
)
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


@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_is_a_factor_and_a_summand(affine):
    norm = nn.BatchNorm2d(6, eps=0.1, affine=affine).double().eval()
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale, shift = batch_norm_factors(
        norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    x = torch.randn(2, 6, 3, 4).double()
    ours = scale[:, None, None] * x + shift[:, None, None]
    assert_close(ours, norm(x), torch.float64)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4), (6,)])
def test_scaled_outputs_are_those_of_scaled_weights(shape):
    weight, scale = torch.randn(shape).double(), torch.randn(6).double()
    scaled = scale_outputs(weight, scale)
    for c in range(6):
        assert torch.equal(scaled[c], weight[c] * scale[c])
    assert torch.equal(scale_outputs(weight, torch.tensor([2.0])), 2 * weight)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_identity_goes_into_the_centre(kernel_size):
    weight = torch.randn(6, 1, kernel_size, kernel_size).double()
    x, padding = torch.randn(2, 6, 5, 7).double(), kernel_size // 2
    folded = F.conv2d(x, add_identity(weight), padding=padding, groups=6)
    expected = x + F.conv2d(x, weight, padding=padding, groups=6)
    assert_close(folded, expected, torch.float64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 2, 3, 3), r"shape \(C, 1, K, K\), got \(6, 2, 3, 3\)"),
        ((6, 1, 3, 5), r"got \(6, 1, 3, 5\)"),
        ((6, 1, 2, 2), "kernel size of weight must be odd, got 2"),
    ],
)
def test_only_depthwise_kernels_have_a_centre(shape, message):
    with pytest.raises(ValueError, match=message):
        add_identity(torch.zeros(shape))


def test_half_precision_is_folded_in_float32():
    half = torch.full((4,), 0.3, dtype=torch.float16)
    assert scale_outputs(half, half).dtype == torch.float32
    assert add_identity(half.reshape(4, 1, 1, 1)).dtype == torch.float32
    assert {t.dtype for t in batch_norm_factors(half, half, half, half, eps=1e-5)} == {
        torch.float32
    }


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_done_to_the_inputs_goes_into_the_weights(groups, bias):
    conv = nn.Conv2d(4, 6, 3, groups=groups, bias=bias)
    x, scale, shift = torch.randn(2, 4, 5, 6), torch.randn(4), torch.randn(4)
    expected = conv(x * scale[:, None, None] + shift[:, None, None])
    weight, moved = affine_before(conv.weight, conv.bias, scale, shift, groups=groups)
    assert_close(F.conv2d(x, weight, moved, groups=groups), expected, torch.float32)


def test_factors_of_inputs_must_be_as_many():
    with pytest.raises(ValueError, match=r"one value for each of 4 inputs, got \(3,\) and \(4,\)"):
        affine_before(torch.zeros(6, 4), None, torch.ones(3), torch.ones(4))
