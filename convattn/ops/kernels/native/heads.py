"""Attention of few tokens, and window attention, by `heads.c`, without gradients.

Products and exponentials are computed in float32. Each function calls an operator of PyTorch for a
CPU.
"""

from __future__ import annotations

from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native.library import (
    HEADS_TASK,
    MAPS,
    Kernels,
    is_half,
    kernels,
    threads,
    workspace,
)
from convattn.ops.registration import check_no_gradient, define, empty_channels_last

MOST_TOKENS = 2048  # limits the rounding error of float32 sums over tokens
_LANES = 16  # the largest number of lanes of a vector


def attend_tokens(qkv: Tensor, num_heads: int) -> Tensor:
    """Return ``softmax(q k^T / sqrt(d)) v`` of every head (B, T, C), for ``qkv`` (B, T, 3C)."""
    check_no_gradient("attend_tokens", qkv)
    y: Tensor = _attend_tokens(qkv, num_heads)
    return y


def attend_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    num_heads: int,
    window_size: int,
    scale: float,
) -> Tensor:
    """Attend in the K x K windows of channels-last maps (B, C, H, W); K divides H and W.

    Args:
        q: queries; the channels of a pixel are contiguous, also in ``k`` and ``v``.
        k: keys.
        v: values.
        mask: added to the logits (windows or 1, heads or 1, keys, queries), float32, the queries
            padded to whole vectors by `lanes`; None for no mask.
        num_heads: N.
        window_size: K.
        scale: factor of the products.
    """
    check_no_gradient("attend_windows", q, k, v, mask)
    y: Tensor = _attend_windows(q, k, v, mask, num_heads, window_size, scale)
    return y


def lanes(x: Tensor) -> Tensor:
    """Pad the last dimension with zeros to whole vectors."""
    return F.pad(x.contiguous(), (0, whole(x.shape[-1]) - x.shape[-1]))


def whole(size: int) -> int:
    """Return the length of a row that is padded to whole vectors."""
    return size + -size % _LANES


def _compute_tokens(qkv: Tensor, num_heads: int) -> Tensor:
    qkv = qkv.contiguous()
    B, T, width = qkv.shape
    C, half = width // 3, is_half(qkv)
    d = C // num_heads
    out = qkv.new_empty(B, T, C)
    start, step = qkv.data_ptr(), C * qkv.element_size()
    strides = T * width, d, T * width, width, half
    maps = MAPS[4].pack(
        *(start, *strides),
        *(start + step, *strides),
        *(start + 2 * step, *strides),
        *(out.data_ptr(), T * C, d, T * C, C, half),
    )
    task = B, num_heads, d, 1, 1, 1, T, threads(), d**-0.5, 0, 0, 0
    _run(qkv, task, maps, None)
    return out


def _compute_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    num_heads: int,
    window_size: int,
    scale: float,
) -> Tensor:
    B, C, H, W = q.shape
    d, half = C // num_heads, is_half(q, k, v)
    if H % window_size or W % window_size or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"maps must have one shape, which window_size={window_size} divides, got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    out = empty_channels_last(q)
    maps = MAPS[4].pack(
        *_describe(q, d, half),
        *_describe(k, d, half),
        *_describe(v, d, half),
        *_describe(out, d, half),
    )
    strides = (0, 0, 0)
    if mask is not None:
        mask = mask.float().contiguous()
        by_window, by_head, by_key, _ = mask.stride()
        windows, heads = mask.shape[:2]
        strides = by_window if windows > 1 else 0, by_head if heads > 1 else 0, by_key
    grid = H // window_size, W // window_size
    task = B, num_heads, d, *grid, window_size, window_size, threads(), scale, *strides
    _run(q, task, maps, mask)
    return out


def _describe(x: Tensor, head_dim: int, half: bool) -> tuple[int, ...]:
    image, channel, row, column = x.stride()
    if channel != 1 and x.shape[1] > 1:
        raise ValueError(f"the channels of a pixel must be contiguous, got strides {x.stride()}")
    return x.data_ptr(), image, head_dim, row, column, half


def _run(like: Tensor, task: tuple[float, ...], maps: bytes, mask: Tensor | None) -> None:
    native = kernels()
    packed, size = _prepare(native, task)
    memory = workspace(like, size)
    native.heads(packed, maps, 0 if mask is None else mask.data_ptr(), memory.data_ptr())


@lru_cache(maxsize=256)
def _prepare(native: Kernels, task: tuple[float, ...]) -> tuple[bytes, int]:
    """Return the task as a C struct, and the size of its workspace in floats."""
    packed = HEADS_TASK.pack(*task)
    return packed, native.heads_workspace(packed)


_attend_tokens = define(
    "attend_tokens(Tensor qkv, SymInt num_heads) -> Tensor",
    _compute_tokens,
    lambda qkv, _: qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3),
    lambda qkv, *_, **__: 4 * qkv[0] * qkv[1] ** 2 * (qkv[2] // 3),
)
_attend_windows = define(
    "attend_windows(Tensor q, Tensor k, Tensor v, Tensor? mask, SymInt num_heads, "
    "SymInt window_size, float scale) -> Tensor",
    _compute_windows,
    lambda q, *_: empty_channels_last(q),
    lambda q, k, v, mask, heads, size, *_, **__: 4 * q[0] * q[1] * q[2] * q[3] * size**2,
)
