"""The deployed form of ACmix: alpha in a projection, its convolution path in one or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.acmix.shortcuts import has_bare_layers, has_bare_projections, is_pointwise
from convattn.layers.attention.part import AttentionPart
from convattn.layers.attention.parts import (
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from convattn.layers.foldable import may_fold, may_fold_inside, may_reach_into, may_read
from convattn.layers.folding import fold_scale, fold_shift
from convattn.ops.acmix.folding import connected, merge_groups, merged_groups
from convattn.ops.acmix.paths import dense_pays, folding_pays
from convattn.ops.fuse import fold_fc_group_conv, scale_outputs, widened

if TYPE_CHECKING:
    from convattn.layers.acmix.acmix import ACmix

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
            y += F.conv2d(ones, border, None, conv.stride, conv.padding, conv.dilation)
        return y

    @torch.no_grad()
    def absorb_affine(self, scale: Tensor, shift: Tensor | None) -> None:
        """Make the outputs ``scale * y + shift``, both (C,)."""
        fold_scale(self.conv, scale)
        if shift is not None:
            fold_shift(self.conv, shift)
        if self.border is not None:
            self.border.copy_(scale_outputs(self.border, scale))


@torch.no_grad()
def fold_acmix(layer: ACmix) -> None:
    """Fold what is linear with nothing between; see ``ACmix.reparameterize``."""
    if layer.fc is None or not may_fold_inside(layer):
        return
    convolution = (layer.fc,) if layer.dep_conv is None else (layer.fc, layer.dep_conv)
    if not may_fold(*convolution) or not has_bare_layers(layer):
        return
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    beta = 1 - layer.alpha if layer.beta is None else layer.beta
    fold_scale(layer.fc, torch.as_tensor(beta, device=layer.fc.weight.device))
    _settle(layer, "beta")
    if layer.takes_map and may_read(*projections) and has_bare_projections(layer):
        layer.direct = map_convolution(
            projections,
            layer.fc,
            layer.dep_weight(layer.fc.weight),
            head_dim=layer.head_dim,
            stride=layer.attn.stride,
            dilation=layer.dilation,
        ).train(layer.training)
        layer.fc = layer.dep_conv = None
        if layer.mix == "convolution":
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(layer, name, nn.Identity())
    if isinstance(layer.alpha, nn.Parameter) and _fold_alpha(layer, layer.alpha):
        _settle(layer, "alpha")
    if layer.fc is None:
        return
    outputs = layer.out_chans // layer.head_dim
    pays = folding_pays(sum(layer.attn.groups), outputs, layer.kernel_size, layer.attn.stride)
    if pays and layer.shift != "tensor" and layer.backend == "auto":
        kernels = layer.dep_weight(layer.fc.weight)
        layer.folded = folded_layers(layer.fc, kernels, layer.head_dim)
        layer.fc = layer.dep_conv = None
        layer.takes_map = False  # the folded convolution takes q, k and v


@torch.no_grad()
def absorb_affine(layer: ACmix, scale: Tensor, shift: Tensor) -> bool:
    """Make the layer's outputs ``scale * y + shift``; see ``ACmix.absorb_affine``."""
    if layer.mix == "attention":
        last = _last_layer(layer)
        if last is None or type(layer.attn) not in _MEANS_OF_V:
            return False
        fold_scale(last, scale)
        fold_shift(last, shift)
        return True
    fold_acmix(layer)
    if layer.direct is None or not may_reach_into(layer.direct) or not may_fold(layer.direct.conv):
        return False
    if layer.mix == "convolution":
        layer.direct.absorb_affine(scale, shift)
        return True
    last = _last_layer(layer)
    if last is None or isinstance(layer.alpha, nn.Parameter):
        return False
    fold_scale(last, scale)
    # The convolution sees no tokens: where there may be some, the attention adds the shift.
    tokens = type(layer.attn).forward_tokens is not AttentionPart.forward_tokens
    if tokens:
        fold_shift(last, shift)
    layer.direct.absorb_affine(scale, None if tokens else shift)
    return True


def _settle(layer: ACmix, factor: str) -> None:
    """Make a factor 1, and no longer a parameter."""
    delattr(layer, factor)
    setattr(layer, factor, 1.0)


def _fold_alpha(layer: ACmix, alpha: Tensor) -> bool:
    """Fold the factor of the attention into weights; False, and nothing done, where it cannot be.

    Into the last layer of the attention. If that is ``v_proj`` and ``fc`` takes v too, the inverse
    goes there: ``fc`` has a column for each group of q, k and v.
    """
    last, fc = _last_layer(layer), layer.fc
    if last is None:
        return False
    if last is layer.v_proj and fc is not None:
        if not alpha.is_meta and not _MODERATE[0] < float(alpha.abs()) < _MODERATE[1]:
            return False
        of_v = fc.weight[:, -layer.attn.groups[2] :]
        of_v.copy_(widened(of_v) / alpha)
    fold_scale(last, alpha)
    return True


def _last_layer(layer: ACmix) -> nn.Conv2d | None:
    """Return the layer whose factors are those of the attention; None if there is none.

    That is the output projection of the attention or, without one, ``v_proj``.
    """
    attn = layer.attn
    proj = getattr(attn, "proj", None)
    if type(attn) not in _LINEAR_IN_V or not may_reach_into(attn):
        return None
    if proj is not None and not may_fold(proj):
        return None
    last = layer.v_proj if proj is None or isinstance(proj, nn.Identity) else proj
    if last in (layer.q_proj, layer.k_proj) or not may_fold(last):
        return None
    return last if is_pointwise(last) else None


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
    if dense_pays(parts, stride, merged):
        kernels, border = parts.dense()
        return MapConvolution(None, _conv(kernels, like, *size), _parameter(border, like))
    connect = _conv(parts.weight.flatten(0, 1)[:, :, None, None], like)
    connect.bias = _parameter(parts.bias.flatten(), like)
    kernels = merge_groups(parts.kernels, groups=head_dim, merged=merged)
    conv = _conv(kernels, like, *size, groups=head_dim // merged)
    return MapConvolution(connect, conv, None)


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
