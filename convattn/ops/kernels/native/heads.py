"""Attention of few tokens and of the pixels of windows by `heads.c`, without gradients.

Products and exponentials are float32. They are called by address, where `rows.takes` says that
nobody minds.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native.library import library
from convattn.ops.kernels.native.maps import Map

MOST_TOKENS = 2048  # sums of more would lose digits of float32
_LANES = 16  # the most that a vector has


class _Task(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "batch", "heads", "width", "down", "across", "rows", "columns", "threads",
            )
        ),
        ("scale", ctypes.c_double),
        ("mask", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("mask_window", "mask_head", "mask_key")),
    )  # fmt: skip


def attend_tokens(qkv: Tensor, num_heads: int) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` of every head, for dense ``qkv`` (B, T, 3C): (B, T, C)."""
    B, T, width = qkv.shape
    C = width // 3
    d = C // num_heads
    out = qkv.new_empty(B, T, C)
    half, start = qkv.dtype == torch.bfloat16, qkv.data_ptr()
    maps = [
        Map(start + i * C * qkv.element_size(), T * width, d, T * width, width, half)
        for i in range(3)
    ]
    maps.append(Map(out.data_ptr(), T * C, d, T * C, C, half))
    task = _Task(B, num_heads, d, 1, 1, 1, T, torch.get_num_threads(), d**-0.5)
    _run(task, maps)
    return out


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
    """Attend in the K x K windows of maps (B, C, H, W) that those fill, channels last.

    Args:
        q: queries; the channels of a pixel lie one after another, as in ``k`` and ``v``.
        k: keys.
        v: values.
        mask: added to the logits (windows or 1, heads or 1, keys, queries), float32, its queries in
            whole vectors by `lanes`; None for nothing.
        num_heads: N.
        window_size: K.
        scale: factor of the products.
    """
    B, C, H, W = q.shape
    d = C // num_heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device, memory_format=torch.channels_last)
    maps = [_windows_of(x, d) for x in (q, k, v, out)]
    grid = H // window_size, W // window_size
    threads = torch.get_num_threads()
    task = _Task(B, num_heads, d, *grid, window_size, window_size, threads, scale)
    if mask is not None:
        mask = mask.contiguous()
        windows, heads = (
            stride if size > 1 else 0
            for stride, size in zip(mask.stride()[:2], mask.shape[:2], strict=True)
        )
        task.mask = mask.data_ptr()
        task.mask_window, task.mask_head, task.mask_key = windows, heads, mask.shape[3]
    _run(task, maps)
    return out


def lanes(x: Tensor) -> Tensor:
    """Lengthen the last dimension by zeros, to whole vectors."""
    return F.pad(x.contiguous(), (0, whole(x.shape[-1]) - x.shape[-1]))


def whole(size: int) -> int:
    """Return how long a row of so many numbers is in whole vectors."""
    return size + -size % _LANES


def _windows_of(x: Tensor, head_dim: int) -> Map:
    image, channel, row, column = x.stride()
    if channel != 1 and x.shape[1] > 1:
        raise ValueError(f"channels must lie one after another, got strides {x.stride()}")
    return Map(x.data_ptr(), image, head_dim, row, column, x.dtype == torch.bfloat16)


def _run(task: _Task, maps: list[Map]) -> None:
    compiled = library()
    room = compiled.heads_room
    room.restype = ctypes.c_int64
    space = torch.empty(room(ctypes.byref(task)), dtype=torch.float32, device="cpu")
    compiled.heads(ctypes.byref(task), (Map * len(maps))(*maps), ctypes.c_void_p(space.data_ptr()))
