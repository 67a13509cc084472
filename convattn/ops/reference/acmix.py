"""The reference of ACmix's convolution path: connect the groups, unfold, sum.

B batch, J = 3N groups of d channels each (q, then k, then v), N outputs per channel of a group,
K kernel; maps are (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def acmix_convolution(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    dep_weight: Tensor,
    fc_bias: Tensor | None,
    *,
    head_dim: int,
    stride: int,
    dilation: int,
) -> Tensor:
    """Connect the groups into K^2 maps per channel, then convolve those maps channel by channel."""
    C_out, maps, K, _ = dep_weight.shape
    features = connect((q, k, v), fc_weight, fc_bias, head_dim)
    B, _, _, H, W = features.shape
    columns = F.unfold(
        features.flatten(1, 2), K, dilation=dilation, padding=dilation * (K // 2), stride=stride
    )
    columns = columns.unflatten(1, (head_dim, maps, K * K))
    kernels = dep_weight.reshape(head_dim, C_out // head_dim, maps, K * K)
    out = torch.einsum("dnmt,bdmtl->bdnl", kernels, columns)
    return out.reshape(B, C_out, -(-H // stride), -(-W // stride))


def connect(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, head_dim: int) -> Tensor:
    """Apply the fully connected layer to the groups at each channel: (B, d, K^2, H, W)."""
    groups = torch.cat([x.unflatten(1, (-1, head_dim)) for x in maps], dim=1)
    features = torch.einsum("mj,bjdhw->bdmhw", weight.flatten(1), groups)
    return features if bias is None else features + bias[:, None, None]
