"""Averages of a map over the bins of adaptive pooling.

B batch, C channels, H W size of the map.

| path        | computes                                        |
|-------------|-------------------------------------------------|
| "products"  | a product with a matrix of bins along each axis |
| "reference" | ``adaptive_avg_pool2d``                         |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.resampling.resize import along_axes


@dataclass
class BinsCall(Call):
    """Arguments of `average_bins`."""

    x: Tensor
    grid: tuple[int, int]


def average_bins(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the averages (B, rows * columns, C) of a map (B, C, H, W), row by row."""
    averages: Tensor = AVERAGE_BINS(BinsCall(x, grid))
    return averages


def _pool(x: Tensor, *, grid: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)


def _pool_refuses(call: BinsCall) -> str | None:
    if call.exported:
        return (
            "an export may be for ONNX, which has no pooling to overlapping bins or to bins of a "
            "map of unknown size"
        )
    return None


def _multiply(x: Tensor, *, grid: tuple[int, int]) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rows, columns = (_bins(n, side, wide) for n, side in zip(grid, x.shape[2:], strict=True))
    return along_axes(wide, rows, columns).flatten(1, 2).to(x.dtype)


def _prefers_products(call: BinsCall) -> bool:
    """Return whether the gradient of pooling is slow or nondeterministic, or not exportable."""
    if call.grad and not call.exporting:
        return call.device == "cpu" or torch.are_deterministic_algorithms_enabled()
    return call.exported


def _bins(n: int, side: int, like: Tensor) -> Tensor:
    """Return the matrix (n, side) that averages the bins of adaptive pooling along an axis."""
    i = torch.arange(n, device=like.device)[:, None]
    p = torch.arange(side, device=like.device)
    inside = ((p >= i * side // n) & (p < ((i + 1) * side + n - 1) // n)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


# One core with AVX2, (8, 64, 56x56), channels last.
AVERAGE_BINS: Operator[BinsCall] = Operator(
    "average_bins",
    Path("reference", _pool, "forward alone 0.35 ms, products 0.74", _pool_refuses),
    Path(
        "products",
        _multiply,
        "forward and backward 2.4 ms, PyTorch's pooling 14.6; on CUDA PyTorch's gradient is not "
        "deterministic; exports have no such pooling",
        prefers=_prefers_products,
    ),
)
