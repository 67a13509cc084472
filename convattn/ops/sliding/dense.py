"""Sliding-window attention without a copy of the keys per window: two exact fast paths.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation, T queries and U keys of a tile along one axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import exporting
from convattn.ops.layout import to_heads, to_map, to_tokens
from convattn.ops.positions import ceil_divide, reflect, window_positions

# Queries of a tile along one axis span this many pixels, or a window if that is more: fewer copy
# more of the halo, more compute more products that the mask throws away. Not fitted to the size of
# the map, so that one compiled graph serves every size; 7 divides the maps of 224-pixel images.
TILE_SPAN = 7


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

    Bands of rows take no keys but those of the rows that they see, where that is a part of the map.
    """
    rows, columns = (_log_counts(size, window_size, stride, dilation, q) for size in k.shape[2:])
    (H, W), width = q.shape[2:], k.shape[3]
    bands = [(slice(0, H), slice(0, k.shape[2]))]
    if _pays_in_bands(q, k, v):
        bands = _bands(H, k.shape[2], dilation * (window_size // 2), stride)
    q, k, v = (to_heads(x, num_heads) for x in (q, k, v))
    answers = []
    for asked, seen in bands:
        mask = rows[asked, None, seen, None] + columns[None, :, None, :]
        pixels = slice(asked.start * W, asked.stop * W)
        keys = slice(seen.start * width, seen.stop * width)
        a, b, c, mask = q[:, :, pixels], k[:, :, keys], v[:, :, keys], mask.flatten(2).flatten(0, 1)
        answers.append(F.scaled_dot_product_attention(a, b, c, attn_mask=mask, scale=scale))
    return to_map(answers[0] if len(answers) == 1 else torch.cat(answers, 2), H, W)


def _pays_in_bands(*maps: Tensor) -> bool:
    """Whether many small calls are less work: not where each has a gradient, a graph or a GPU."""
    if exporting() or torch.compiler.is_compiling() or maps[0].device.type != "cpu":
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in maps))


def _bands(answered: int, height: int, reach: int, stride: int) -> list[tuple[slice, slice]]:
    """Return bands of rows of queries, and the rows that each sees: what is mirrored is among them.

    Two rows (256, 14x14): 2.0 ms, three bands 2.4, all rows at once 2.8; (256, 18x18): 4.6, 5.3,
    7.3. Where a band sees more than 3 / 5 of the map, as of 7 rows, it does not pay.
    """
    size = 2 if 5 * (2 * reach + 1 + stride) <= 3 * height else answered
    bands = []
    for first in range(0, answered, size):
        end = min(first + size, answered)
        top, bottom = stride * first - reach, stride * (end - 1) + reach + 1
        bands.append((slice(first, end), slice(max(top, 0), min(bottom, height))))
    return bands


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
    """Attend tile by tile: T x T queries and the U x U keys that they see, under one mask.

    The keys of neighbouring tiles overlap: together they are up to four copies of a map that is
    larger than the window.
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
    """The tiles of one axis: n in each of r phases, of T queries each.

    A dilated window shows every r-th pixel, so the queries of a tile lie r outputs apart: they show
    the same pixels.
    """

    blocks: int  # n
    tile: int  # T
    queries: Tensor  # (r n, T) places among those that are answered
    keys: Tensor  # (r n, U) positions
    seen: Tensor  # (T, U) whether the query's window shows the key


def _plan(size: int, window_size: int, stride: int, dilation: int, device: torch.device) -> _Plan:
    """Divide the queries of an axis into tiles; the last ones may reach past the end."""
    tile = ceil_divide(max(TILE_SPAN, window_size), stride)
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
        # past the end: dropped later
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


def _log_counts(size: int, window_size: int, stride: int, dilation: int, like: Tensor) -> Tensor:
    """Return log of how often each query's window shows each position of an axis."""
    seen = window_positions(
        size, window_size=window_size, stride=stride, dilation=dilation, device=like.device
    )
    places = torch.arange(size, device=like.device)
    counts = (seen[:, :, None] == places).sum(dim=1)
    return counts.to(torch.promote_types(like.dtype, torch.float32)).log().to(like.dtype)
