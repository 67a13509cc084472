"""Patch-wise aggregation: weighted sums over windows, with given weights for each position."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convattn.checks import check_divisible, check_map, check_odd, check_positive, check_tensor
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.positions import ceil_divide, padded_positions, window_positions
from convattn.ops.reference import attention as reference


@dataclass
class PatchCall(Call):
    """Arguments of `patchwise_aggregate`, checked."""

    weights: Tensor
    v: Tensor
    kernel_size: int
    stride: int
    dilation: int


def _aggregate_taps(
    weights: Tensor, v: Tensor, *, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Add one product per place in the window, on views of the padded map, without copies."""
    reach = dilation * (kernel_size // 2)
    for dim in (2, 3):
        v = v.index_select(dim, padded_positions(v.shape[dim], reach, v.device))
    v = v.unflatten(1, (-1, weights.shape[1]))
    # `narrow` instead of slices: a slice would be clamped to symbolic sizes K^2 times.
    height, width = (stride * (size - 1) + 1 for size in weights.shape[3:])
    out = v.new_zeros(())
    for t, weight in enumerate(weights.unbind(2)):
        top, left = dilation * (t // kernel_size), dilation * (t % kernel_size)
        seen = v.narrow(-2, top, height).narrow(-1, left, width)
        out = out + weight[:, None] * seen[..., ::stride, ::stride]
    return out.flatten(1, 2)


PATCHWISE: Operator[PatchCall] = Operator(
    "patchwise_aggregate",
    Path("reference", reference.patchwise_aggregate, "the formula"),
    Path("taps", _aggregate_taps, "views of the padded map in place of K^2 copies"),
)


def patchwise_aggregate(
    weights: Tensor,
    v: Tensor,
    *,
    kernel_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Sum the K x K pixels around every s-th pixel, with given weights, on a mirrored map.

    ``y[c, i] = sum_t weights[c mod M, t, i] v[c, i + t]``, t in the K x K window

    Args:
        weights: M weight maps (B, M, K^2, ceil(H / s), ceil(W / s)); M divides C.
        v: the map (B, C, H, W).
        kernel_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.
        backend: "auto", "taps" or "reference".

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)).

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    The aggregation of patch-wise SAN (arXiv 2004.13621), section 3.2, that ACmix takes as one of
    its attentions. A map that is smaller than the reach of a window is mirrored repeatedly.
    """
    check_odd("kernel_size", kernel_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_map(v, "v")
    check_tensor("weights", weights)
    B, H, W = v.shape[0], *(ceil_divide(n, stride) for n in v.shape[2:])
    places = kernel_size**2
    if weights.dim() != 5 or (weights.shape[0], *weights.shape[2:]) != (B, places, H, W):
        raise ValueError(
            f"weights must have shape ({B}, M, {places}, {H}, {W}), got {tuple(weights.shape)}"
        )
    check_divisible("channels of v", v.shape[1], "weight maps", weights.shape[1])
    return PATCHWISE(PatchCall(weights, v, kernel_size, stride, dilation), backend)


def neighbourhoods(x: Tensor, *, kernel_size: int, stride: int = 1, dilation: int = 1) -> Tensor:
    """Copy the K x K pixels around every s-th one, the map mirrored at its borders.

    This is K^2 copies of the map: for narrow maps only.

    Args:
        x: the map (B, C, H, W).
        kernel_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.

    Returns:
        (B, C, K^2, ceil(H / s), ceil(W / s)).

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: a map of another rank, sizes that do not fit.
    """
    check_odd("kernel_size", kernel_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_map(x)
    rows, columns = (
        window_positions(
            size, window_size=kernel_size, stride=stride, dilation=dilation, device=x.device
        )
        for size in x.shape[2:]
    )
    x = x[:, :, rows][..., columns]
    return x.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
