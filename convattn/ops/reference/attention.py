"""The reference paths of the attention operators: unfolding, loops over windows, einsum.

B batch, C channels, N heads of d = C / N channels, K window, s stride, r dilation; maps are
(B, C, H, W) with the channels of each head adjacent in C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None = None,
    *,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float | None,
) -> Tensor:
    """Copy the K x K keys and values of every query, and attend to them.

    ``q`` contains every s-th query of each axis.
    """
    B, C, *size = q.shape
    scale = (C // num_heads) ** -0.5 if scale is None else scale
    q = _heads(q, num_heads)
    keys = _heads(neighbourhoods(k, window_size, stride, dilation), num_heads)
    values = _heads(neighbourhoods(v, window_size, stride, dilation), num_heads)
    if position is not None:
        here = position[:, :, ::stride, ::stride]
        there = neighbourhoods(position, window_size, stride, dilation)
        keys = keys + (here[:, :, None] - there)[:, None]
    logits = scale * torch.einsum("bndhw,bndthw->bnthw", q, keys)
    out = torch.einsum("bnthw,bndthw->bndhw", logits.softmax(dim=2), values)
    return out.reshape(B, C, *size)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    scale: float | None,
) -> Tensor:
    """Attend window by window; a window at the border may have fewer pixels."""
    rows = []
    for rows_of_window in _windows(q.shape[2], window_size, shift[0]):
        row = []
        for columns_of_window in _windows(q.shape[3], window_size, shift[1]):
            pixels = [(down, across) for down in rows_of_window for across in columns_of_window]
            places = [window_size * down[1] + across[1] for down, across in pixels]
            rolled = torch.tensor(
                [2 * down[2] + across[2] for down, across in pixels], device=q.device
            )
            mask = torch.zeros(len(pixels), len(pixels), dtype=q.dtype, device=q.device)
            mask = mask.masked_fill(rolled[:, None] != rolled, float("-inf"))
            if bias is not None:
                mask = mask + bias[:, places][:, :, places]
            cut = (
                ...,
                slice(rows_of_window[0][0], rows_of_window[-1][0] + 1),
                slice(columns_of_window[0][0], columns_of_window[-1][0] + 1),
            )
            row.append(_attend(q[cut], k[cut], v[cut], num_heads, scale, mask))
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)


def global_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float | None
) -> Tensor:
    """Attend from every position of q to every position of k and v."""
    return _attend(q, k, v, num_heads, scale, None)


def patchwise_aggregate(
    weights: Tensor, v: Tensor, *, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Copy the K x K values of every position, then sum them with its weights."""
    B, C, _, _ = v.shape
    maps = weights.shape[1]
    patches = neighbourhoods(v, kernel_size, stride, dilation)
    patches = patches.reshape(B, C // maps, maps, *patches.shape[2:])
    out = torch.einsum("bmthw,bgmthw->bgmhw", weights, patches)
    return out.reshape(B, C, *out.shape[-2:])


def neighbourhoods(x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Return the K x K pixels around every s-th pixel, mirrored: (B, C, K^2, H_out, W_out)."""
    B, C, H, W = x.shape
    reach = dilation * (kernel_size // 2)
    for dim in (2, 3):
        size = x.shape[dim]
        padded = [_reflect(i, size) for i in range(-reach, size + reach)]
        x = x.index_select(dim, torch.tensor(padded, device=x.device))
    columns = F.unfold(x, kernel_size, dilation=dilation, stride=stride)
    return columns.reshape(B, C, kernel_size**2, -(-H // stride), -(-W // stride))


def _reflect(i: int, size: int) -> int:
    """Mirror a position at the borders until it is inside."""
    while size > 1 and not 0 <= i < size:
        i = -i if i < 0 else 2 * (size - 1) - i
    return i if size > 1 else 0


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(1, (num_heads, -1))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None, mask: Tensor | None
) -> Tensor:
    """Softmax attention over all positions; ``mask`` is added to the logits."""
    B, C, H, W = q.shape
    scale = (C // num_heads) ** -0.5 if scale is None else scale
    q, k, v = (_heads(x.flatten(2), num_heads) for x in (q, k, v))
    logits = scale * torch.einsum("bndi,bndj->bnij", q, k)
    if mask is not None:
        logits = logits + mask
    return torch.einsum("bnij,bndj->bndi", logits.softmax(dim=3), v).reshape(B, C, H, W)


def _windows(size: int, window_size: int, shift: int) -> list[list[tuple[int, int, bool]]]:
    """List (index, place in the window, whether the shift rolled it) of the pixels of each window.

    Pixels that were rolled around the border are at the end of the last window. Places without a
    pixel are before them.
    """
    left_over = -size % window_size
    windows: list[list[tuple[int, int, bool]]] = [[] for _ in range(-(-size // window_size))]
    for i in range(size):
        rolled = i >= size - shift
        window, place = divmod(i + left_over * rolled, window_size)
        windows[window].append((i, place, rolled))
    return windows
