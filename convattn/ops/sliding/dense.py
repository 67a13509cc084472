"""Sliding-window attention to the map without padding, by a mask, for all rows or in bands.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation. The map is mirrored at its borders, so that a window may contain a key m times. The mask
adds log m to the logit of the key:

    sum over the window = sum_j m_ij exp(l_ij) v_j = sum_j exp(l_ij + log m_ij) v_j
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.layout import to_heads, to_map
from convattn.ops.positions import window_positions

Band = tuple[slice, slice]  # rows of queries, and the rows of keys in their windows


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
    """Attend from all queries to all keys of the map."""
    bands = [(slice(0, q.shape[2]), slice(0, k.shape[2]))]
    return _attend(q, k, v, bands, num_heads, window_size, stride, dilation, scale)


def attend_in_bands(
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
    """Attend from a few rows of queries at a time to the rows of keys in their windows."""
    reach = dilation * (window_size // 2)
    bands = []
    for first in range(0, q.shape[2], tuned.BAND_ROWS):
        end = min(first + tuned.BAND_ROWS, q.shape[2])
        # These rows include the rows that are mirrored at the border.
        top, bottom = stride * first - reach, stride * (end - 1) + reach + 1
        bands.append((slice(first, end), slice(max(top, 0), min(bottom, k.shape[2]))))
    return _attend(q, k, v, bands, num_heads, window_size, stride, dilation, scale)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bands: list[Band],
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float | None,
) -> Tensor:
    rows, columns = (_log_counts(size, window_size, stride, dilation, q) for size in k.shape[2:])
    (H, W), width = q.shape[2:], k.shape[3]
    q, k, v = (to_heads(x, num_heads) for x in (q, k, v))
    outputs = []
    for queries, keys in bands:
        mask = rows[queries, None, keys, None] + columns[None, :, None, :]
        band_q = q[:, :, queries.start * W : queries.stop * W]
        band_k, band_v = (x[:, :, keys.start * width : keys.stop * width] for x in (k, v))
        mask = mask.flatten(2).flatten(0, 1)
        outputs.append(
            F.scaled_dot_product_attention(band_q, band_k, band_v, attn_mask=mask, scale=scale)
        )
    return to_map(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2), H, W)


def _log_counts(size: int, window_size: int, stride: int, dilation: int, like: Tensor) -> Tensor:
    """Return the log of the number of times that each query's window contains each position."""
    positions = window_positions(
        size, window_size=window_size, stride=stride, dilation=dilation, device=like.device
    )
    places = torch.arange(size, device=like.device)
    counts = (positions[:, :, None] == places).sum(dim=1)
    return counts.to(torch.promote_types(like.dtype, torch.float32)).log().to(like.dtype)
