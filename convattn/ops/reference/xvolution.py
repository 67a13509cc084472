"""The reference of pixel shift self-attention: one copy of keys and values per displacement.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, L distance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_shift_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    kernel_size: int = 3,
    distance: int = 1,
    stride: int = 1,
    scale: float | None = None,
) -> Tensor:
    """Unfold keys and values, multiply, sum over the displacements."""
    if scale is None:
        scale = (q.shape[1] // num_heads) ** -0.5 / kernel_size**2
    q = q[:, :, ::stride, ::stride]
    height, width = q.shape[-2:]
    queries = q.flatten(2).unflatten(1, (num_heads, -1))
    keys, values = (
        F.unfold(
            t, kernel_size, dilation=distance, padding=distance * (kernel_size // 2), stride=stride
        ).unflatten(1, (num_heads, -1, kernel_size**2))
        for t in (k, v)
    )  # (B, N, d, K^2, HW)
    weights = torch.einsum("bndp,bndkp->bnkp", queries * scale, keys)
    out = torch.einsum("bnkp,bndkp->bndp", weights, values)
    return out.flatten(1, 2).unflatten(2, (height, width))
