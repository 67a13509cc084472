"""Averages of a map over a grid of bins, as adaptive pooling takes them.

B batch, C channels, H W size of the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.old_dispatch import is_torch_export
from convattn.ops.resampling.resize import along_axes, differentiated


def average_bins(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the averages (B, rows * columns, C) of a map, row by row."""
    if _takes_products(x):
        return _products(x, grid)
    return F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)


def _takes_products(x: Tensor) -> bool:
    """Whether to multiply with the bins: for an export, or for a gradient.

    ONNX has no pooling to bins that overlap, nor to bins of a map whose size is not known yet.
    PyTorch's gradient of such a pooling is not deterministic on CUDA. On a CPU it is slower: one
    core with AVX2, (8, 64, 56, 56), channels last, forward and backward: 14.6 ms, products 2.4;
    forward alone 0.35 ms, products 0.74.
    """
    if torch.onnx.is_in_onnx_export() or is_torch_export():
        return True
    better = x.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    return better and differentiated(x)


def _products(x: Tensor, grid: tuple[int, int]) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rows, columns = (_bins(n, side, wide) for n, side in zip(grid, x.shape[2:], strict=True))
    return along_axes(wide, rows, columns).flatten(1, 2).to(x.dtype)


def _bins(n: int, side: int, like: Tensor) -> Tensor:
    """Return the matrix (n, side) whose product averages the bins of adaptive pooling."""
    i = torch.arange(n, device=like.device)[:, None]
    p = torch.arange(side, device=like.device)
    inside = ((p >= i * side // n) & (p < ((i + 1) * side + n - 1) // n)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
