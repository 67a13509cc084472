"""The attentions from their formulas, plain and slow: unfolding, loops over windows, einsum.

B batch, C channels, N heads of d = C / N channels, K window, s stride, r dilation; maps are
(B, C, H, W) with the N heads one after another in C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    position: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Copy the K x K keys and values of every query, then softmax over them."""
    q = q[:, :, ::stride, ::stride]
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
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attend window by window; one that hangs over the border is cut off there."""
    rows = []
    for top in range(0, q.shape[2], window_size):
        row = []
        for left in range(0, q.shape[3], window_size):
            cut = (..., slice(top, top + window_size), slice(left, left + window_size))
            size = q[cut].shape[-2:]
            wrapped = _wrapped(q, (top, left), size, shift)
            mask = torch.zeros_like(wrapped, dtype=q.dtype)
            mask = mask.masked_fill(wrapped != wrapped.T, float("-inf"))
            if bias is not None:
                mask = mask + _cut_bias(bias, window_size, size)
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
    """Return the K x K pixels around every s-th one, reflected: (B, C, K^2, H_out, W_out)."""
    B, C, H, W = x.shape
    reach = dilation * (kernel_size // 2)
    for dim in (2, 3):
        size = x.shape[dim]
        padded = [_reflect(i, size) for i in range(-reach, size + reach)]
        x = x.index_select(dim, torch.tensor(padded, device=x.device))
    columns = F.unfold(x, kernel_size, dilation=dilation, stride=stride)
    return columns.reshape(B, C, kernel_size**2, -(-H // stride), -(-W // stride))


def _reflect(i: int, size: int) -> int:
    """Mirror a position at the borders until it lies inside."""
    while size > 1 and not 0 <= i < size:
        i = -i if i < 0 else 2 * (size - 1) - i
    return i if size > 1 else 0


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.reshape(x.shape[0], num_heads, -1, *x.shape[2:])


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


def _wrapped(x: Tensor, start: tuple[int, int], size: torch.Size, shift: tuple[int, int]) -> Tensor:
    """Number the parts of a window that the cyclic shift brought together: (L, L), by row."""
    parts = []
    for axis in (0, 1):
        place = torch.arange(start[axis], start[axis] + size[axis], device=x.device)
        parts.append(place >= x.shape[2 + axis] - shift[axis])
    number = (2 * parts[0][:, None] + parts[1]).flatten()
    return number[:, None].expand(-1, number.numel())


def _cut_bias(bias: Tensor, window_size: int, size: torch.Size) -> Tensor:
    """Keep the rows and columns of the bias that belong to the pixels of a cut window."""
    inside = torch.arange(window_size**2, device=bias.device).reshape(window_size, window_size)
    inside = inside[: size[0], : size[1]].flatten()
    return bias[:, inside][:, :, inside]
