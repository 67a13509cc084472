"""The deployed forms of ACmix's convolution path: modules whose weights are folded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.folding import fold_scale, fold_shift
from convattn.ops.acmix.folding import connected, fold_map_convolution
from convattn.ops.fuse import fold_fc_group_conv, scale_outputs, widened


class MapConvolution(nn.Module):
    """The convolution path as one or two convolutions of the projections' input map.

    ``y = conv(connect(x)) + border * 1``: ``connect`` is a 1x1 convolution, or None where one dense
    convolution computes the path. ``border * 1`` adds the biases of the projections, which are zero
    in the padding around the map.

    Args:
        connect: the 1x1 convolution to the input of ``conv``, or None.
        conv: the convolution, strided and dilated.
        border: kernels (C, 1, K, K) that convolve a map of ones, or None.
    """

    def __init__(
        self, connect: nn.Conv2d | None, conv: nn.Conv2d, border: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.connect = connect
        self.conv = conv
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (B, C, ceil(H / s), ceil(W / s))."""
        if self.connect is not None:
            x = self.connect(x)
        y = self.conv(x)
        border = self.border
        if border is not None:
            ones = torch.ones([1, 1, x.shape[2], x.shape[3]], dtype=x.dtype, device=x.device)
            conv = self.conv
            y += F.conv2d(ones, border, None, conv.stride, conv.padding, conv.dilation)
        return y

    @torch.no_grad()
    def absorb_affine(self, scale: Tensor, shift: Tensor | None) -> None:
        """Replace the outputs y by ``scale * y + shift``, both (C,)."""
        fold_scale(self.conv, scale)
        if shift is not None:
            fold_shift(self.conv, shift)
        if self.border is not None:
            self.border.copy_(scale_outputs(self.border, scale))


@torch.no_grad()
def deployed_map(
    projections: Sequence[nn.Conv2d],
    fc: nn.Conv2d,
    dep_weight: Tensor,
    *,
    head_dim: int,
    stride: int,
    dilation: int,
) -> MapConvolution:
    """Return the deployed form that convolves the input map of the projections."""
    parts = connected(
        [p.weight for p in projections],
        [p.bias for p in projections],
        fc.weight,
        fc.bias,
        dep_weight,
        head_dim=head_dim,
    )
    like, folded = fc.weight, fold_map_convolution(parts, stride=stride)
    conv = _conv(folded.kernels, like, stride, dilation, folded.groups)
    border = None if folded.border is None else _parameter(folded.border, like)
    if folded.connect is None:
        return MapConvolution(None, conv, border)
    connect = _conv(folded.connect[0], like)
    connect.bias = _parameter(folded.connect[1], like)
    return MapConvolution(connect, conv, border)


def _conv(
    weight: Tensor, like: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution with these kernels, in the dtype of ``like``, without bias."""
    outputs, inputs, K, _ = weight.shape
    conv = nn.Conv2d(
        inputs * groups,
        outputs,
        K,
        stride,
        dilation * (K // 2),
        dilation,
        groups,
        bias=False,
        device="meta",
    )
    conv.weight = _parameter(weight, like)
    return conv


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)


@torch.no_grad()
def deployed_layers(fc: nn.Conv2d, dep_weight: Tensor, head_dim: int) -> nn.Conv2d:
    """Return one convolution for ``fc`` and the group convolution; a bias convolves ones."""
    weight = fc.weight.flatten(1)
    if fc.bias is not None:
        weight = torch.cat([weight, fc.bias[:, None]], dim=1)
    kernels = fold_fc_group_conv(widened(weight), widened(dep_weight), groups=head_dim)
    outputs, groups, kernel_size, _ = kernels.shape
    folded = nn.Conv2d(
        groups * head_dim, outputs, kernel_size, groups=head_dim, bias=False, device="meta"
    )
    grad = fc.weight.requires_grad
    folded.weight = nn.Parameter(kernels.to(fc.weight.dtype), requires_grad=grad)
    return folded.train(fc.training)
