"""Attention to the pixels of a window as operators of PyTorch that call Triton programs.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation, T side of a tile; i queries, j places of the window, k the pixel at place j of window i.

With a softmax (sliding window; the map is mirrored at its borders, repeatedly):

    l_ij = scale q_i . k_j,  P_ij = exp(l_ij - lse_i),  y_i = sum_j P_ij v_j
    delta_i = dy_i . y_i,  dl_ij = P_ij (dy_i . v_j - delta_i)

Without a softmax (pixel shift; the map is zero outside, r is the distance L):

    P_ij = l_ij,  y_i = sum_j P_ij v_j,  dl_ij = dy_i . v_j

In both cases:

    dq_i = scale sum_j dl_ij k_j
    dk_k = scale sum_(ij shows k) dl_ij q_i,   dv_k = sum_(ij shows k) P_ij dy_i

``ij shows k`` are the pairs of a query i and a place j of its window that contains the key k. The
sums over these pairs are computed key by key, from each mirror image of the key and the queries
around the image. Atomic additions would need no mirror images, but their order is not fixed, and
they need float32 copies of both gradients. Only y, lse and delta are stored, and no copy of a map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convattn.ops.kernels.triton import neighbours_programs as programs
from convattn.ops.kernels.triton.launch import accumulator, on_device_of, power_of_2, wide
from convattn.ops.positions import ceil_divide

MOST_BYTES = 1024  # maximum bytes of the channels of a head: larger tiles exceed shared memory


@torch.library.custom_op("convattn_kernels::attend_neighbours", mutates_args=())
def attend_neighbours(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Attend to the neighbours.

    Args:
        q: queries of the stride (B, C, ceil(H / s), ceil(W / s)), in any layout.
        k: keys (B, C, H, W).
        v: values, shaped like ``k``.
        num_heads: N.
        window_size: K, odd.
        stride: s.
        dilation: r.
        scale: factor of the logits.
        softmax: True for a softmax on mirrored maps, False for products on zero-padded maps.

    Returns:
        The map (B, C, ceil(H / s), ceil(W / s)) and lse (B, N, ceil(H / s), ceil(W / s)), in base 2
        and float32 or float64.
    """
    out, lse = _outputs(q, num_heads)
    tiling = _tiling(q, num_heads, window_size, stride, dilation, softmax)
    grid, sizes = _grid(tiling, q.shape[2:], q, k)
    with on_device_of(q, programs.attend):
        programs.attend[grid](
            q, k, v, out, lse, *_strides(q, k, v, out), *sizes, num_heads, scale, **tiling
        )
    return out, lse


@attend_neighbours.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    return _outputs(q, num_heads)


@torch.library.custom_op("convattn_kernels::attend_neighbours_backward", mutates_args=())
def attend_neighbours_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return grad_q, grad_k and grad_v of ``attend_neighbours``, in the layouts of q, k and v."""
    num_heads = lse.shape[1]
    dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, lse))
    tiling = _tiling(q, num_heads, window_size, stride, dilation, softmax)
    with on_device_of(q, programs.attend):
        grid, sizes = _grid(tiling, q.shape[2:], q, k)
        programs.backward_queries[grid](
            q, k, v, out, grad, lse, delta, dq,
            *_strides(q, k, v, out, grad, dq), *sizes, num_heads, scale, **tiling,
        )  # fmt: skip
        grid, sizes = _grid(tiling, k.shape[2:], q, k)
        programs.backward_keys[grid](
            q, k, v, grad, lse, delta, dk, dv,
            *_strides(q, k, v, grad, dk, dv), *sizes, num_heads, scale,
            *_images(k, window_size, dilation, softmax), _lift(k, tiling),
            **_by_keys(tiling),
        )  # fmt: skip
    return dq, dk, dv


@attend_neighbours_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, _, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    gradients = attend_neighbours_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *gradients, *(6 * [None])


attend_neighbours.register_autograd(_backward, setup_context=_save)


def _outputs(q: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Allocate the map of outputs, in the layout of the queries, and lse."""
    B, C, rows, columns = q.shape
    out = q.new_empty(B, C, rows, columns)
    if q.stride(1) == 1:
        out = q.new_empty(B, rows, columns, C).permute(0, 3, 1, 2)
    return out, q.new_empty(B, num_heads, rows, columns, dtype=wide(q.dtype))


def _tiling(
    q: Tensor, num_heads: int, window_size: int, stride: int, dilation: int, softmax: bool
) -> dict[str, Any]:
    """Choose tiles and blocks by the registers and the shared memory of a program."""
    channels = q.shape[1] // num_heads
    block_c = power_of_2(channels, 16)
    row = block_c * q.element_size()  # bytes of a pixel of a tile
    if row > MOST_BYTES:
        raise ValueError(
            f"backend 'triton' takes heads of at most {MOST_BYTES // q.element_size()} channels in "
            f"{q.dtype}, got {channels}: use more heads, or another backend"
        )
    tile = 8 if stride == 1 and row <= 256 else 4
    reach = stride * (tile - 1) + window_size
    pixels = 64 if row <= 128 else 32 if row <= 512 else 16
    columns = min(power_of_2(reach), pixels)
    rows = pixels // columns
    return {
        "CHANNELS": channels,
        "BLOCK_C": block_c,
        "TILE": tile,
        "WINDOW": window_size,
        "STRIDE": stride,
        "DILATION": dilation,
        "SOFTMAX": softmax,
        "ACC": accumulator(q.dtype),
        "BLOCKS": ceil_divide(reach, rows) * ceil_divide(reach, columns),
        "BLOCK_ROWS": rows,
        "BLOCK_COLUMNS": columns,
        "num_warps": 4 if tile * tile * row <= 4096 else 8,
        "num_stages": 2,
    }


def _by_keys(tiling: dict[str, Any]) -> dict[str, Any]:
    """Choose the blocks of queries for a tile of keys; every SKIP-th candidate is a query."""
    skip = tiling["STRIDE"] // math.gcd(tiling["STRIDE"], tiling["DILATION"])
    pixels = tiling["BLOCK_ROWS"] * tiling["BLOCK_COLUMNS"]
    columns = power_of_2(ceil_divide(tiling["TILE"] + tiling["WINDOW"] - 1, skip))
    columns = min(columns, pixels)
    blocks = {
        "BLOCK_ROWS": pixels // columns,
        "BLOCK_COLUMNS": columns,
        "SKIP": skip,
        "SKIP_BLOCK": power_of_2(skip),
        "num_warps": 8 if tiling["TILE"] == 8 else tiling["num_warps"],
    }
    return {name: n for name, n in tiling.items() if name != "BLOCKS"} | blocks


def _grid(
    tiling: dict[str, Any], tiled: torch.Size, q: Tensor, k: Tensor
) -> tuple[tuple[int], list[int]]:
    """Return the number of programs, for a map that is cut into tiles, and all sizes."""
    phases = tiling["DILATION"]
    blocks = [ceil_divide(n, phases * tiling["TILE"]) for n in tiled]
    programs_of_plane = phases**2 * blocks[0] * blocks[1]
    planes = q.shape[0] * (q.shape[1] // tiling["CHANNELS"])
    return (programs_of_plane * planes,), [*k.shape[2:], *q.shape[2:], *blocks]


def _images(k: Tensor, window_size: int, dilation: int, softmax: bool) -> list[int]:
    """Return the first mirror image and the number of mirror images, each by row and column.

    The windows contain these images. Image m is at the places m span to (m + 1) span of the padded
    axis, see ``_image``.
    """
    if not softmax:
        return [0, 0, 1, 1]
    reach = dilation * (window_size // 2)
    first, number = [], []
    for size in k.shape[2:]:
        span = max(size - 1, 1)
        first.append(-reach // span)
        number.append((size - 1 + reach) // span - first[-1] + 1)
    return [*first, *number]


def _lift(k: Tensor, tiling: dict[str, Any]) -> int:
    """Return a number of strides that makes all places of a padded map nonnegative when added.

    The sign of % differs between Triton and its interpreter.
    """
    return 4 * (max(k.shape[2:]) + tiling["DILATION"] * (tiling["TILE"] + tiling["WINDOW"]))


def _strides(*maps: Tensor) -> list[int]:
    return [n for x in maps for n in (x.stride(0), x.stride(1), x.stride(2), x.stride(3))]
