"""What ACmix folds at deployment: alpha into a projection, its convolution path into one or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.attention import (
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from convattn.layers.attention_part import AttentionPart
from convattn.layers.folding import fold_scale, fold_shift
from convattn.ops._acmix_kernels import Connected, connected, merge_groups, merged_groups
from convattn.ops.fuse import fold_fc_group_conv, scale_outputs, widened

# Parts that are a projection of, or plainly, a sum of v with weights that do not see v. Exactly
# these: what derives from them may compute something else.
_LINEAR_IN_V = (
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)

# Of those, the parts whose weights sum to one: what is added to v is added to the result.
_MEANS_OF_V = (
    GlobalAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)

# Beyond, a factor and its inverse in two weights would cost digits in half precision.
_MODERATE = (0.01, 100.0)


class MapConvolution(nn.Module):
    """The convolution path from the map that q, k and v are projected from, its weights folded.

    ``y = conv(connect(x)) + border * 1``: ``connect`` is a 1x1 convolution, or nothing where one
    dense convolution does it all; ``border`` is what the projections' biases add, which zero
    padding cuts off at the border of the map.

    Args:
        connect: to the maps that ``conv`` takes, or None.
        conv: the convolution, strided and dilated.
        border: kernels (C, 1, K, K) of a map of ones, or None.
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
            y = y + F.conv2d(ones, border, None, conv.stride, conv.padding, conv.dilation)
        return y

    @torch.no_grad()
    def absorb_affine(self, scale: Tensor, shift: Tensor) -> None:
        """Make the outputs ``scale * y + shift``, both (C,)."""
        fold_scale(self.conv, scale)
        fold_shift(self.conv, shift)
        if self.border is not None:
            self.border.copy_(scale_outputs(self.border, scale))


@torch.no_grad()
def map_convolution(
    projections: Sequence[nn.Conv2d],
    fc: nn.Conv2d,
    dep_weight: Tensor,
    *,
    head_dim: int,
    stride: int,
    dilation: int,
) -> MapConvolution:
    """Return the convolution path from the map that the projections take."""
    parts = connected(
        [p.weight for p in projections],
        [p.bias for p in projections],
        fc.weight,
        fc.bias,
        dep_weight,
        head_dim=head_dim,
    )
    like, size = fc.weight, (stride, dilation)
    outputs = parts.kernels.shape[0] // head_dim
    merged = merged_groups(head_dim, outputs)
    if _dense_pays(parts, stride, merged):
        kernels, border = parts.dense()
        return MapConvolution(None, _conv(kernels, like, *size), _parameter(border, like))
    connect = _conv(parts.weight.flatten(0, 1)[:, :, None, None], like)
    connect.bias = _parameter(parts.bias.flatten(), like)
    kernels = merge_groups(parts.kernels, groups=head_dim, merged=merged)
    conv = _conv(kernels, like, *size, groups=head_dim // merged)
    return MapConvolution(connect, conv, None)


def _dense_pays(parts: Connected, stride: int, merged: int) -> bool:
    """Whether one dense convolution is as fast as a projection and a group convolution.

    Counted in multiplications for one pixel; a dense convolution does 1.5 of them in the time of
    one of the two others. Measured in float32, batch 16, one core, 3 x 3 kernels: (64, 56) 15 ms
    against 16; (128, 28) 15, 10; (256, 14) 14, 7; (128, 56) with stride 2 16, 48; (96, 56), three
    heads, 34, 33, and 17, 21 in bfloat16; (192, 28), six heads, 33, 13.
    """
    d, R, C_in = parts.weight.shape
    C, _, K, _ = parts.kernels.shape
    return C * C_in * K**2 <= 1.5 * (d * R * C_in * stride**2 + C * R * merged * K**2)


def _conv(
    weight: Tensor, like: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution of these kernels without bias, of the type and kind of ``like``."""
    outputs, taken, K, _ = weight.shape
    conv = nn.Conv2d(
        taken * groups,
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
def fold_alpha(attn: AttentionPart, v_proj: nn.Conv2d, fc: nn.Conv2d | None, alpha: Tensor) -> bool:
    """Fold the factor of the attention into weights; False, and nothing done, where it cannot be.

    Into the output projection where there is one. Else into v, with the inverse where ``fc`` takes
    it: ``fc`` has a column for each group of q, k and v. Without an ``fc`` nothing else sees v, and
    the factor may be one for each channel.
    """
    if type(attn) not in _LINEAR_IN_V:
        return False
    proj = getattr(attn, "proj", None)
    if isinstance(proj, nn.Conv2d):
        fold_scale(proj, alpha)
        return True
    if fc is None:
        fold_scale(v_proj, alpha)
        return True
    if not alpha.is_meta and not _MODERATE[0] < float(alpha.abs()) < _MODERATE[1]:
        return False
    fold_scale(v_proj, alpha)
    of_v = fc.weight[:, -attn.groups[2] :]
    of_v.copy_(widened(of_v) / alpha)
    return True


@torch.no_grad()
def folded_layers(fc: nn.Conv2d, dep_weight: Tensor, head_dim: int) -> nn.Conv2d:
    """Return ``fc`` and the group convolution after it as one; a bias becomes one more group."""
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


def adds_up(attn: AttentionPart) -> bool:
    """Whether what is added to v, or to the output projection, is added to the attention."""
    return type(attn) in _MEANS_OF_V


@torch.no_grad()
def shift_attention(attn: AttentionPart, v_proj: nn.Conv2d, shift: Tensor) -> None:
    """Add ``shift`` (C,) to what the attention gives."""
    proj = getattr(attn, "proj", None)
    fold_shift(proj if isinstance(proj, nn.Conv2d) else v_proj, shift)


def sees_one_map(attn: AttentionPart) -> bool:
    """Whether q, k and v come from one map, and the convolution takes them as they are."""
    kind = type(attn)
    return (kind.context, kind.spread) == (AttentionPart.context, AttentionPart.spread)


def attends_map(attn: AttentionPart) -> bool:
    """Whether the attention is less work from that map than from q, k and v."""
    return type(attn).forward_map is not AttentionPart.forward_map and sees_one_map(attn)
