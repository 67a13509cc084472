"""Window attention through one fused call: partition, mask what does not belong, attend, merge.

B batch, C channels, N heads of d = C / N channels, K window, L = K^2 its pixels, n windows.

An axis that K does not divide is padded before the pixels that the shift rolled around its end:
those stay together in the last window, as they are in the grid of windows that the shift moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._reflection import ceil_divide


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Pad the map to whole windows and attend in all of them at once."""
    B, _, H, W = q.shape
    grid = ceil_divide(H, window_size), ceil_divide(W, window_size)
    gaps = tuple(_gap(*axis, window_size) for axis in zip((H, W), grid, shift, strict=True))
    q, k, v = (_partition(_pad(x, gaps), grid, num_heads, window_size) for x in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[None]
    if H % window_size or W % window_size or max(shift) > 0:
        mask = _mask(gaps, grid, window_size, bias, q)
        # windows differ: they go beside the heads, so that the mask is not copied per image
        q, k, v = (x.unflatten(0, (B, grid[0] * grid[1])).flatten(1, 2) for x in (q, k, v))
        mask = mask.expand(-1, num_heads, -1, -1).flatten(0, 1)[None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    # rows and columns of windows, heads, rows and columns of a window, channels of a head
    out = out.reshape(B, *grid, num_heads, window_size, window_size, q.shape[3])
    out = out.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return _unpad(out, gaps)


def _gap(size: int, windows: int, shift: int, window_size: int) -> tuple[int, int]:
    """Return where the padding of an axis starts and ends."""
    start = size - shift if shift < size else 0
    return start, start + windows * window_size - size


def _pad(x: Tensor, gaps: Sequence[tuple[int, int]]) -> Tensor:
    """Fill up to whole windows with zeros."""
    for dim, (start, end) in zip((2, 3), gaps, strict=True):
        if end > start:
            shape = list(x.shape)
            shape[dim] = end - start
            after = x.narrow(dim, start, x.shape[dim] - start)
            x = torch.cat([x.narrow(dim, 0, start), x.new_zeros(shape), after], dim)
    return x


def _unpad(x: Tensor, gaps: Sequence[tuple[int, int]]) -> Tensor:
    """Take out what ``_pad`` put in."""
    for dim, (start, end) in zip((2, 3), gaps, strict=True):
        if end > start:
            after = x.narrow(dim, end, x.shape[dim] - end)
            x = torch.cat([x.narrow(dim, 0, start), after], dim)
    return x


def _partition(x: Tensor, grid: tuple[int, int], num_heads: int, window_size: int) -> Tensor:
    """Cut a map of whole windows into their tokens: (B n, N, L, d)."""
    x = x.unflatten(3, (grid[1], window_size)).unflatten(2, (grid[0], window_size))
    x = x.unflatten(1, (num_heads, x.shape[1] // num_heads)).permute(0, 3, 5, 1, 4, 6, 2)
    return x.flatten(4, 5).flatten(0, 2).contiguous()


def _mask(
    gaps: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    window_size: int,
    bias: Tensor | None,
    like: Tensor,
) -> Tensor:
    """Return what is added to the logits of each window: (n, N or 1, L, L)."""
    rows, columns = (
        _segments(gap, windows, window_size, like.device)
        for gap, windows in zip(gaps, grid, strict=True)
    )
    segments = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    segments = segments.flatten(2).flatten(0, 1)
    apart = segments[:, :, None] != segments[:, None, :]
    start = like.new_zeros(1, 1, 1, 1) if bias is None else bias.to(like.dtype)[None]
    return start.masked_fill(apart[:, None], float("-inf"))


def _segments(gap: tuple[int, int], windows: int, window_size: int, device: torch.device) -> Tensor:
    """Number the pixels of an axis, window by window: 0 in place, 1 padding, 2 rolled around."""
    places = torch.arange(windows * window_size, device=device)
    segments = (places >= gap[0]).long() + (places >= gap[1]).long()
    return segments.unflatten(0, (windows, window_size))
