"""X-volution: attention over shifted pixels, without a softmax.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, L distance of
the displacements, s stride.

Paths of ``pixel_shift_attention``:

| backend     | computes                                                                      |
|-------------|-------------------------------------------------------------------------------|
| "shifted"   | one displacement after another on views of padded maps; what "auto" takes     |
| "triton"    | tiles of queries with a halo of keys, on a GPU: `convattn.ops.kernels`        |
| "reference" | the formula on K^2 copies of keys and values                                  |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_divisible, check_map, check_odd, check_positive
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels import triton
from convattn.ops.reference import xvolution as reference


@dataclass
class ShiftCall(Call):
    """Arguments of `pixel_shift_attention`, checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    num_heads: int
    kernel_size: int
    distance: int
    stride: int
    scale: float


def _shifted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    kernel_size: int,
    distance: int,
    stride: int,
    scale: float,
) -> Tensor:
    heads = (num_heads, q.shape[1] // num_heads)
    # The queries are scaled before the product, which might overflow in half precision.
    queries = (q[:, :, ::stride, ::stride] * scale).unflatten(1, heads)
    height, width = queries.shape[-2:]
    pad = (distance * (kernel_size // 2),) * 4
    keys, values = (F.pad(t, pad).unflatten(1, heads) for t in (k, v))
    out: Tensor | None = None
    for i in range(kernel_size):
        for j in range(kernel_size):
            rows = slice(i * distance, i * distance + (height - 1) * stride + 1, stride)
            columns = slice(j * distance, j * distance + (width - 1) * stride + 1, stride)
            weight = (queries * keys[..., rows, columns]).sum(dim=2, keepdim=True)
            term = weight * values[..., rows, columns]
            out = term if out is None else out + term
    assert out is not None
    return out.flatten(1, 2)


PIXEL_SHIFT: Operator[ShiftCall] = Operator(
    "pixel_shift_attention",
    Path("reference", reference.pixel_shift_attention, "the formula"),
    Path("shifted", _shifted, "views of padded maps in place of K^2 copies"),
    Path(
        "triton",
        triton.attend_shifted,
        "not measured on a GPU",
        triton.refuses,
        prefers=lambda call: False,
    ),
)


def pixel_shift_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    kernel_size: int = 3,
    distance: int = 1,
    stride: int = 1,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Sum the neighbours' values, each weighted by the product of query and key.

    ``a(x0) = sum_delta r_delta(x0) v(x0 + delta)``,
    ``r_delta(x0) = scale * <q(x0), k(x0 + delta)>`` per head, ``delta`` over K x K displacements
    that are L pixels apart, keys and values zero outside the map.

    Args:
        q: queries (B, C, H, W), of which ``q[:, :, ::s, ::s]`` is used.
        k: keys (B, C, H, W).
        v: values (B, C, H, W).
        num_heads: N; each head has a block of adjacent channels.
        kernel_size: K, odd.
        distance: L, pixels between displacements.
        stride: s.
        scale: factor of the products; None for ``1 / (sqrt(d) K^2)``.
        backend: "auto", "shifted", "triton" or "reference".

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)).

    Raises:
        ValueError: shapes, sizes or names that do not fit.

    X-volution (arXiv 2106.02253), pixel shift self-attention. No code was published, and the text
    does not specify the displacements and their distance. This package takes the whole K x K grid.
    """
    _check_maps(q, k, v)
    check_divisible("channels", q.shape[1], "num_heads", num_heads)
    check_odd("kernel_size", kernel_size)
    check_positive("distance", distance)
    check_positive("stride", stride)
    if scale is None:
        scale = (q.shape[1] // num_heads) ** -0.5 / kernel_size**2
    call = ShiftCall(q, k, v, num_heads, kernel_size, distance, stride, scale)
    return PIXEL_SHIFT(call, backend)


def _check_maps(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_map(q, "q")
    for name, t in (("k", k), ("v", v)):
        check_map(t, name)
        if t.shape != q.shape:
            raise ValueError(
                f"{name} must have the shape of q, got {tuple(t.shape)} and {tuple(q.shape)}"
            )
