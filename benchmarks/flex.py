"""Sliding-window attention with PyTorch's FlexAttention, for a comparison on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sliding_window_flex(
    *, size: int, num_heads: int, window_size: int, stride: int, device: str, compiled: bool = True
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return ``(q, k, v, position) -> y``, equal to `convattn.ops.sliding_window_attention`.

    Keys and values are padded by reflection; the mask of a query selects its window.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    halo, outputs = window_size // 2, -(-size // stride)
    padded_size = size + 2 * halo

    def in_window(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows = key // padded_size - query // outputs * stride
        columns = key % padded_size - query % outputs * stride
        return (rows >= 0) & (rows < window_size) & (columns >= 0) & (columns < window_size)

    mask = create_block_mask(in_window, None, None, outputs**2, padded_size**2, device=device)
    attend = torch.compile(flex_attention) if compiled else flex_attention

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(1, (num_heads, -1)).flatten(3).transpose(2, 3)

    def padded(x: Tensor) -> Tensor:
        return F.pad(x, (halo,) * 4, mode="reflect")

    def call(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        k = (k.unflatten(1, (num_heads, -1)) - position[:, None]).flatten(1, 2)
        q = heads(q[:, :, ::stride, ::stride])
        out = attend(q, heads(padded(k)), heads(padded(v)), block_mask=mask)
        assert isinstance(out, Tensor)
        return out.transpose(2, 3).flatten(1, 2).unflatten(2, (outputs, outputs))

    return call
