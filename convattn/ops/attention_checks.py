"""Checks of arguments that several attention operators have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convattn.checks import check_divisible, check_map, check_tensor
from convattn.ops.positions import ceil_divide


def check_heads(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> None:
    """Raise an error unless q, k and v are maps of matching shapes, divisible into heads."""
    check_map(q, "q")
    check_map(k, "k", q.shape[1])
    check_divisible("channels of q", q.shape[1], "num_heads", num_heads)
    if v.shape != k.shape or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"k and v must have one shape and the batch of q, got q {tuple(q.shape)}, "
            f"k {tuple(k.shape)}, v {tuple(v.shape)}"
        )


def check_windows(
    num_heads: int, window_size: int, shift: int | tuple[int, int], bias: Tensor | None
) -> tuple[int, int]:
    """Raise an error unless shift and bias fit the windows; return the shift (rows, columns)."""
    pair = (shift, shift) if isinstance(shift, int) else shift
    _check_shift(pair, window_size)
    pixels = window_size**2
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != (num_heads, pixels, pixels):
            raise ValueError(
                f"bias must have shape (num_heads, window_size^2, window_size^2) = "
                f"{(num_heads, pixels, pixels)}, got {tuple(bias.shape)}"
            )
    return pair


def _check_shift(shift: tuple[int, int], window_size: int) -> None:
    pair = isinstance(shift, (tuple, list)) and len(shift) == 2
    if not pair or not all(isinstance(x, int) for x in shift):
        raise TypeError(f"shift must be an integer or (rows, columns), got {shift!r}")
    if not all(0 <= x < window_size for x in shift):
        raise ValueError(
            f"shift must lie between 0 and window_size - 1 = {window_size - 1}, got {shift}"
        )


def queries_of_stride(q: Tensor, k: Tensor, stride: int) -> Tensor:
    """Return every s-th query of each axis; ``q`` has all queries, or only these."""
    if q.shape == k.shape:
        return q[:, :, ::stride, ::stride] if stride > 1 else q
    size = tuple(ceil_divide(n, stride) for n in k.shape[2:])
    if tuple(q.shape[2:]) != size:
        also = f", or {size} for only the queries of stride={stride}" if stride > 1 else ""
        raise ValueError(
            f"q must have the size of k, {tuple(k.shape[2:])}{also}; got q {tuple(q.shape)} and "
            f"k {tuple(k.shape)}"
        )
    return q


def check_position(position: Tensor | None, k: Tensor, num_heads: int) -> None:
    """Raise an error unless positions are a map of the size of k, with the channels of a head."""
    if position is None:
        return
    check_map(position, "position", k.shape[1] // num_heads)
    if position.shape[0] not in (1, k.shape[0]) or position.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"position must have the size of k and its batch or 1, got {tuple(position.shape)} "
            f"for k {tuple(k.shape)}"
        )


def check_projections(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> None:
    """Raise an error unless weights and biases fit three 1x1 convolutions of a map."""
    if not len(weights) == len(biases) == 3:
        raise ValueError(
            f"weights and biases must be three each, of q, k and v (a bias may be None), got "
            f"{len(weights)} and {len(biases)}"
        )
    check_map(x, "x")
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        check_tensor(f"weight of {name}", weight)
        if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 1, 1):
            raise ValueError(
                f"the weight of {name} must have shape (channels of {name}, {x.shape[1]}, 1, 1) "
                f"for x of shape {tuple(x.shape)}, got {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"the bias of {name} must have shape ({weight.shape[0]},), one for each channel "
                f"of {name}, got {tuple(bias.shape)}"
            )
