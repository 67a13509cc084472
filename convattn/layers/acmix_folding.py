"""What ACmix folds at deployment: alpha into a projection, its two convolutions into one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.layers.attention import (
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from convattn.layers.attention_part import AttentionPart
from convattn.layers.folding import fold_scale
from convattn.ops.fuse import fold_fc_group_conv, widened

# Parts that are a projection of, or plainly, a sum of v with weights that do not see v. Exactly
# these: what derives from them may compute something else.
_LINEAR_IN_V = (
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)

# Beyond, a factor and its inverse in two weights would cost digits in half precision.
_MODERATE = (0.01, 100.0)


@torch.no_grad()
def fold_alpha(attn: AttentionPart, v_proj: nn.Conv2d, fc: nn.Conv2d, alpha: Tensor) -> bool:
    """Fold the factor of the attention into weights; False, and nothing done, where it cannot be.

    Into the output projection where there is one. Else into v, with the inverse where ``fc`` takes
    it: ``fc`` has a column for each group of q, k and v.
    """
    if type(attn) not in _LINEAR_IN_V:
        return False
    proj = getattr(attn, "proj", None)
    if isinstance(proj, nn.Conv2d):
        fold_scale(proj, alpha)
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
