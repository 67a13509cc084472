"""Sliding-window attention by `sliding.c`; the same letters.

Sums and exponentials are float32, and every sum has one order: results do not depend on how many
threads there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from convattn.ops.kernels.native.library import library, why_not_available
from convattn.ops.kernels.native.maps import Map
from convattn.ops.positions import ceil_divide
from convattn.ops.registration import empty_channels_last, register

DTYPES = (torch.float32, torch.bfloat16)
MOST_WINDOW = 32
MOST_REACH = 40  # pixels from a window's first to its last: of wider ones, most is the halo
# Floats of a thread's room, forward and backward: what stays in a core's second cache. Bands of
# more rows copy less of the halo.
ROOM = (1 << 17, 1 << 18)
_ROWS = 3  # that a product takes at once


class _Task(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "batch", "heads", "width", "height", "breadth", "rows", "columns",
                "window", "stride", "dilation", "band", "threads",
            )
        ),
        ("scale", ctypes.c_double),
    )  # fmt: skip


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
    """Return the answers in q's type."""
    out = empty_channels_last(q)
    k, v = k.to(q.dtype), v.to(q.dtype)
    sizes = _sizes(q, k, num_heads, window_size, stride, dilation)
    _run(sizes, scale, [q, k, v, _origin(position), out], backward=False)
    return out


def native_backward(
    gradient: Tensor,
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
    """Return the gradients by q, k and v; that by the position is a sum of that by k."""
    by_q = empty_channels_last(q)
    # Added to from several rows of queries: in float32, and rounded once.
    by_k, by_v = (empty_channels_last(x, torch.float32).zero_() for x in (k, v))
    kinds = k.dtype, v.dtype
    gradient, k, v = (x.to(q.dtype) for x in (gradient, k, v))
    sizes = _sizes(q, k, num_heads, window_size, stride, dilation)
    maps = [q, k, v, _origin(position), gradient, by_q, by_k, by_v]
    _run(sizes, scale, maps, backward=True)
    return by_q, by_k.to(kinds[0]), by_v.to(kinds[1])


def refuses(dtype: torch.dtype, window_size: int, dilation: int) -> str | None:
    """Return why the kernels cannot compute in this type with such a window; None if they can."""
    if dtype not in DTYPES:
        return f"it computes float32 and bfloat16, got {dtype}"
    if window_size > MOST_WINDOW or dilation * (window_size - 1) > MOST_REACH:
        return (
            f"it has windows of up to {MOST_WINDOW} pixels, at most {MOST_REACH} from the first to "
            f"the last, got window_size={window_size}, dilation={dilation}"
        )
    return why_not_available()


def _sizes(
    q: Tensor, k: Tensor, num_heads: int, window_size: int, stride: int, dilation: int
) -> tuple[int, ...]:
    B, C, *answered = q.shape
    size = k.shape[2:]
    stride = min(stride, max(size))  # a longer one answers the first pixel alone, too
    return B, num_heads, C // num_heads, *size, *answered, window_size, stride, dilation


def _origin(position: Tensor | None) -> Tensor | None:
    if position is None:
        return None
    return position.float().contiguous(memory_format=torch.channels_last)


def _run(
    sizes: tuple[int, ...], scale: float, maps: Sequence[Tensor | None], *, backward: bool
) -> None:
    if not sizes[0]:
        return
    plan, room = _plan(sizes, torch.get_num_threads(), backward)
    task = _Task.from_buffer_copy(plan)
    task.scale = scale
    space = torch.empty(room, dtype=torch.float32, device="cpu")
    library().sliding(
        ctypes.byref(task),
        (Map * len(maps))(*(_describe(x) for x in maps)),
        ctypes.c_void_p(space.data_ptr()),
        ctypes.c_int64(backward),
    )


def _describe(x: Tensor | None) -> Map:
    if x is None:
        return Map()
    image, *strides = x.stride()
    shared = x.shape[0] == 1  # one position for all images
    return Map(x.data_ptr(), 0 if shared else image, *strides, x.dtype == torch.bfloat16)


@lru_cache(maxsize=256)
def _plan(sizes: tuple[int, ...], threads: int, backward: bool) -> tuple[bytes, int]:
    """Return the task, without its scale, and the floats of its room."""
    batch, heads, *_, rows, _, _, _, _ = sizes
    most = rows
    if backward:  # a head of an image is a task
        threads = min(threads, batch * heads)
    else:  # bands are: a few for each thread, so that none waits for long
        most = ceil_divide(rows, ceil_divide(4 * threads, batch * heads))
    band = ceil_divide(most, _ROWS) * _ROWS

    def room(band: int, threads: int) -> int:
        needed = library().sliding_room
        needed.restype = ctypes.c_int64
        task = _Task(*sizes, band, threads)
        return int(needed(ctypes.byref(task), ctypes.c_int64(backward)))

    while band > _ROWS and room(band, 1) > ROOM[backward]:
        band -= _ROWS
    band = min(band, rows)
    return bytes(_Task(*sizes, band, threads)), room(band, threads)


attend_natively = register("native", native_forward, native_backward, library="convattn_kernels")
