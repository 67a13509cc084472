"""Sliding-window attention in tiles of queries with a halo of keys, in PyTorch's operators only.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation, T queries and U keys of a tile along one axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.layout import to_tokens
from convattn.ops.positions import ceil_divide, reflect


def attend_tiled(
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
    """Attend tile by tile: T x T queries, the U x U keys of their windows, and one mask.

    The keys of neighbouring tiles overlap. For a map that is larger than the window, the keys of
    all tiles are up to four times as many as the pixels.
    """
    B, _, H, W = q.shape
    rows, columns = (_plan(size, window_size, stride, dilation, q.device) for size in k.shape[2:])
    seen = rows.seen[:, None, :, None] & columns.seen[None, :, None, :]
    mask = q.new_zeros(()).masked_fill(~seen.flatten(2).flatten(0, 1), float("-inf"))
    q, k, v = (
        _cut(x, by_row, by_column, num_heads)
        for x, by_row, by_column in (
            (q, rows.queries, columns.queries),
            (k, rows.keys, columns.keys),
            (v, rows.keys, columns.keys),
        )
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    out = out.transpose(1, 2).flatten(2).unflatten(1, (rows.tile, columns.tile))
    out = out.unflatten(0, (B, dilation, rows.blocks, dilation, columns.blocks))
    out = out.permute(0, 7, 2, 5, 1, 4, 6, 3).flatten(5, 7).flatten(2, 4)
    return out[:, :, :H, :W]


@dataclass(frozen=True)
class _Plan:
    """The tiles of one axis: n tiles of T queries in each of r phases.

    A dilated window contains every r-th pixel. The queries of a tile are r outputs apart, so that
    their windows contain the same pixels.
    """

    blocks: int  # n
    tile: int  # T
    queries: Tensor  # (r n, T) indices of the queries
    keys: Tensor  # (r n, U) positions
    seen: Tensor  # (T, U) whether the query's window contains the key


def _plan(size: int, window_size: int, stride: int, dilation: int, device: torch.device) -> _Plan:
    """Divide the queries of an axis into tiles; the last ones may reach past the end."""
    tile = ceil_divide(max(tuned.TILE_SPAN, window_size), stride)
    blocks = ceil_divide(size, stride * dilation * tile)
    phase = torch.arange(dilation, device=device)[:, None]
    first = phase + dilation * tile * torch.arange(blocks, device=device)
    first = first.flatten()[:, None]
    query = torch.arange(tile, device=device)
    key = torch.arange(stride * (tile - 1) + window_size, device=device)
    offset = key - stride * query[:, None]
    return _Plan(
        blocks,
        tile,
        # the outputs of queries past the end are discarded later
        queries=(first + dilation * query).clamp(max=ceil_divide(size, stride) - 1),
        keys=reflect(stride * first + dilation * (key - window_size // 2), size),
        seen=(offset >= 0) & (offset < window_size),
    )


def _cut(x: Tensor, rows: Tensor, columns: Tensor, num_heads: int) -> Tensor:
    """Copy the pixels of every tile: (B tiles, N, pixels, d)."""
    pixels = rows[:, None, :, None] * x.shape[3] + columns[None, :, None, :]
    pixels = pixels.flatten(2).flatten(0, 1)
    tiles = to_tokens(x).index_select(1, pixels.flatten()).unflatten(1, pixels.shape)
    return tiles.flatten(0, 1).unflatten(2, (num_heads, -1)).transpose(1, 2)
