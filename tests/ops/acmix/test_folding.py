"""The weights of ACmix's convolution path in the deployed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn import ops
from convattn.ops.acmix.convolution import convolve
from convattn.ops.acmix.folding import (
    FOLD_MAP_CONVOLUTION,
    Connected,
    Folded,
    fold_map_convolution,
    merge_groups,
)
from tests.compare import assert_close


@pytest.mark.parametrize("merged", [1, 2, 3, 6])
def test_merged_groups_compute_the_same(merged):
    sizes = (2, 12, 5, 4), (18, 2, 3, 3)
    x, kernels = (torch.randn(size, dtype=torch.float64) for size in sizes)
    together = merge_groups(kernels, groups=6, merged=merged)
    assert together.shape == (18, 2 * merged, 3, 3)
    assert_close(
        F.conv2d(x, together, groups=6 // merged), F.conv2d(x, kernels, groups=6), torch.float64
    )


def parts(
    *, in_chans: int = 3, head_dim: int = 4, maps: int = 5, outputs: int = 2, kernel_size: int = 3
) -> Connected:
    sizes = (head_dim, maps, in_chans), (head_dim, maps), (head_dim * outputs, maps)
    weight, bias, kernels = (torch.randn(size, dtype=torch.float64) for size in sizes)
    taps = torch.randn(kernel_size, kernel_size, dtype=torch.float64)
    return Connected(weight, bias, kernels[:, :, None, None] * taps)


def deployed(folded: Folded, x: Tensor, stride: int) -> Tensor:
    if folded.connect is not None:
        x = F.conv2d(x, *folded.connect)
    y = convolve(x, folded.kernels, stride, 1, folded.groups)
    if folded.border is None:
        return y
    return y + convolve(torch.ones_like(x[:1, :1]), folded.border, stride, 1)


@pytest.mark.parametrize("name", FOLD_MAP_CONVOLUTION.backends)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("head_dim", "outputs", "stride"), [(4, 2, 1), (7, 1, 2), (1, 40, 3)])
def test_every_deployed_form_computes_the_two_layers(name, kernel_size, head_dim, outputs, stride):
    layers = parts(head_dim=head_dim, outputs=outputs, kernel_size=kernel_size)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    maps = F.conv2d(x, layers.weight.flatten(0, 1)[..., None, None], layers.bias.flatten())
    expected = convolve(maps, layers.kernels, stride, 1, groups=head_dim)
    folded = fold_map_convolution(layers, stride=stride, backend=name)
    assert (folded.connect is None) == (name == "dense")
    assert_close(deployed(folded, x, stride), expected, torch.float64)


@pytest.mark.parametrize(
    ("in_chans", "heads", "stride", "name"),
    [
        (64, 4, 1, "dense"),
        (128, 4, 1, "connected"),
        (128, 4, 2, "dense"),
        (256, 4, 1, "connected"),
        (96, 3, 1, "dense"),
        (192, 6, 1, "connected"),
    ],
)
def test_the_widths_decide_between_one_convolution_and_two(in_chans, heads, stride, name):
    layers = parts(in_chans=in_chans, head_dim=in_chans // heads, maps=9, outputs=heads)
    choice = ops.explain(fold_map_convolution, layers, stride=stride)
    assert choice.path == name
    assert choice.because


@pytest.mark.parametrize(
    ("groups", "outputs", "merged"),
    [(16, 4, 4), (32, 3, 4), (32, 6, 2), (32, 12, 1), (6, 4, 2), (7, 1, 1), (64, 1, 16)],
)
def test_groups_are_merged_up_to_a_vector_of_outputs(groups, outputs, merged):
    layers = parts(head_dim=groups, outputs=outputs)
    folded = fold_map_convolution(layers, stride=1, backend="connected")
    assert folded.groups == groups // merged
