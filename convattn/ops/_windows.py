"""Window attention through one fused call: partition, mask what does not belong, attend, merge.

B batch, C channels, N heads of d = C / N channels, K window, L = K^2 its pixels, n windows.
"""

from __future__ import annotations

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
    q, k, v = (_partition(x, grid, num_heads, window_size) for x in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[None]
    if H % window_size or W % window_size or max(shift) > 0:
        mask = _mask((H, W), grid, window_size, shift, bias, q)
        # windows differ: they go beside the heads, so that the mask is not copied per image
        q, k, v = (x.unflatten(0, (B, grid[0] * grid[1])).flatten(1, 2) for x in (q, k, v))
        mask = mask.expand(-1, num_heads, -1, -1).flatten(0, 1)[None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    # rows and columns of windows, heads, rows and columns of a window, channels of a head
    out = out.reshape(B, *grid, num_heads, window_size, window_size, q.shape[3])
    out = out.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return out[:, :, :H, :W]


def _partition(x: Tensor, grid: tuple[int, int], num_heads: int, window_size: int) -> Tensor:
    """Cut a map, padded to whole windows, into their tokens: (B n, N, L, d)."""
    bottom, right = (n * window_size - size for n, size in zip(grid, x.shape[2:], strict=True))
    x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
    x = x.unflatten(3, (grid[1], window_size)).unflatten(2, (grid[0], window_size))
    x = x.unflatten(1, (num_heads, x.shape[1] // num_heads)).permute(0, 3, 5, 1, 4, 6, 2)
    return x.flatten(4, 5).flatten(0, 2).contiguous()


def _mask(
    size: tuple[int, int],
    grid: tuple[int, int],
    window_size: int,
    shift: tuple[int, int],
    bias: Tensor | None,
    like: Tensor,
) -> Tensor:
    """Return what is added to the logits of each window: (n, N or 1, L, L)."""
    rows, columns = (
        _segments(size[axis], grid[axis], window_size, shift[axis], like.device) for axis in (0, 1)
    )
    segments = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    segments = segments.flatten(2).flatten(0, 1)
    apart = segments[:, :, None] != segments[:, None, :]
    start = like.new_zeros(1, 1, 1, 1) if bias is None else bias.to(like.dtype)[None]
    return start.masked_fill(apart[:, None], float("-inf"))


def _segments(
    size: int, windows: int, window_size: int, shift: int, device: torch.device
) -> Tensor:
    """Number the pixels of an axis, window by window: 0 in place, 1 wrapped around, 2 padding."""
    places = torch.arange(windows * window_size, device=device)
    segments = (places >= size - shift).long() + (places >= size).long()
    return segments.unflatten(0, (windows, window_size))
