"""Sliding-window attention by `sliding.c`, whose symbols are used here.

Sums and exponentials are computed in float32. The order of every sum is fixed, so that the results
do not depend on the number of threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.kernels.native.library import (
    DTYPES,
    MAPS,
    SLIDING_TASK,
    Kernels,
    kernels,
    threads,
    why_not_available,
    workspace,
)
from convattn.ops.positions import ceil_divide
from convattn.ops.registration import empty_channels_last, register_sliding_window

MAX_WINDOW = 32
MAX_REACH = 40  # pixels from the first to the last of a window; wider windows copy mostly halo
_ROWS = 3  # rows of queries that are multiplied together
_NO_MAP = (0,) * 6


def native_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> Tensor:
    """Return the outputs in the dtype of q."""
    out = empty_channels_last(q)
    k, v = _in_type_of(q, k), _in_type_of(q, v)
    half, origin = q.dtype == torch.bfloat16, _origin(position)
    maps = MAPS[5].pack(
        *(q.data_ptr(), *q.stride(), half),
        *(k.data_ptr(), *k.stride(), half),
        *(v.data_ptr(), *v.stride(), half),
        *_describe_origin(origin),
        *(out.data_ptr(), *out.stride(), half),
    )
    _run(q, k, (num_heads, window_size, stride, dilation, scale), maps, backward=False)
    return out


def native_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return grad_q, grad_k and grad_v; the gradient of the position is a sum of grad_k."""
    grad_q = empty_channels_last(q)
    # Several rows of queries add to grad_k and grad_v: the sums are float32, and rounded once.
    grad_k, grad_v = (empty_channels_last(x, torch.float32).zero_() for x in (k, v))
    dtypes = k.dtype, v.dtype
    grad, k, v = (_in_type_of(q, x) for x in (grad, k, v))
    half, origin = q.dtype == torch.bfloat16, _origin(position)
    maps = MAPS[8].pack(
        *(n for x in (q, k, v) for n in (x.data_ptr(), *x.stride(), half)),
        *_describe_origin(origin),
        *(n for x in (grad, grad_q) for n in (x.data_ptr(), *x.stride(), half)),
        *(n for x in (grad_k, grad_v) for n in (x.data_ptr(), *x.stride(), False)),
    )
    _run(q, k, (num_heads, window_size, stride, dilation, scale), maps, backward=True)
    return grad_q, grad_k.to(dtypes[0]), grad_v.to(dtypes[1])


def refuses(dtype: torch.dtype, window_size: int, dilation: int) -> str | None:
    """Return why the kernels do not support this dtype or window; None if they do."""
    if dtype not in DTYPES:
        return f"it computes float32 and bfloat16, got {dtype}"
    if window_size > MAX_WINDOW or dilation * (window_size - 1) > MAX_REACH:
        return (
            f"it has windows of up to {MAX_WINDOW} pixels, at most {MAX_REACH} from the first to "
            f"the last, got window_size={window_size}, dilation={dilation}"
        )
    return why_not_available()


def _in_type_of(q: Tensor, x: Tensor) -> Tensor:
    return x if x.dtype == q.dtype else x.to(q.dtype)


def _origin(position: Tensor | None) -> Tensor | None:
    if position is None:
        return None
    return position.float().contiguous(memory_format=torch.channels_last)


def _describe_origin(origin: Tensor | None) -> tuple[int, ...]:
    if origin is None:
        return _NO_MAP
    image, channel, row, column = origin.stride()
    if len(origin) == 1:  # all images share one position
        image = 0
    return origin.data_ptr(), image, channel, row, column, False


def _run(q: Tensor, k: Tensor, options: tuple[float, ...], maps: bytes, *, backward: bool) -> None:
    if not q.numel():
        return
    native, limit = kernels(), tuned.NATIVE_WORKSPACE[backward]
    key = q.shape, k.shape, options, threads(), limit, backward
    task, size = _plan(native, *key)
    memory = workspace(q, size)
    native.sliding(task, maps, memory.data_ptr(), backward)


@lru_cache(maxsize=256)
def _plan(
    native: Kernels,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    options: tuple[Any, ...],
    threads: int,
    limit: int,
    backward: bool,
) -> tuple[bytes, int]:
    """Return the task as a C struct, and the size of its workspace in floats."""
    (batch, channels, rows, columns), (H, W) = q_shape, k_shape[2:]
    heads, window_size, stride, dilation, scale = options
    stride = min(stride, max(H, W))  # a longer stride also leaves the first pixel as the only query
    sizes = batch, heads, channels // heads, H, W, rows, columns, window_size, stride, dilation
    largest = rows
    if backward:  # a head of an image is a task
        threads = min(threads, batch * heads)
    else:  # a band is a task: a few bands for each thread balance the load
        largest = ceil_divide(rows, ceil_divide(4 * threads, batch * heads))
    band = ceil_divide(largest, _ROWS) * _ROWS

    def pack(band: int, threads: int) -> tuple[bytes, int]:
        task = SLIDING_TASK.pack(*sizes, band, threads, scale)
        return task, native.sliding_workspace(task, backward)

    while band > _ROWS and pack(band, 1)[1] > limit:
        band -= _ROWS
    return pack(min(band, rows), threads)


attend_natively = register_sliding_window("native", native_forward, native_backward)
