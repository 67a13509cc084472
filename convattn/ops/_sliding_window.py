"""Sliding-window attention without a copy of the keys per window: two exact fast paths.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation, T queries and U keys of a tile along one axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._reflection import window_positions
from convattn.ops._tokens import to_heads, to_map


def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float | None,
) -> Tensor:
    """Attend to the unpadded map; a key that a window shows m times has log m on its logit.

    ``sum over the window = sum_j m_ij exp(l_ij) v_j = sum_j exp(l_ij + log m_ij) v_j``
    """
    rows, columns = (_log_counts(size, window_size, stride, dilation, q) for size in q.shape[2:])
    mask = (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
    q = q[:, :, ::stride, ::stride]
    H, W = q.shape[2:]
    q, k, v = (to_heads(x, num_heads) for x in (q, k, v))
    return to_map(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale), H, W)


def _log_counts(size: int, window_size: int, stride: int, dilation: int, like: Tensor) -> Tensor:
    """Return log of how often each query's window shows each position of an axis."""
    seen = window_positions(
        size, window_size=window_size, stride=stride, dilation=dilation, device=like.device
    )
    places = torch.arange(size, device=like.device)
    counts = (seen[:, :, None] == places).sum(dim=1)
    return counts.to(torch.promote_types(like.dtype, torch.float32)).log().to(like.dtype)
