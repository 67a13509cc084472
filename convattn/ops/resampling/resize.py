"""Interpolation of a map, where a gradient is wanted by one matrix along each axis.

PyTorch's own interpolation has no deterministic gradient on CUDA; a product of matrices has one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.old_dispatch import exporting, no_autocast


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate a map, without aligned corners.

    Args:
        x: the map (B, C, H, W).
        size: rows and columns of the result.
        mode: "bilinear", or "bicubic", which has antialiasing.

    Returns:
        (B, C, *size), in float32 or float64.
    """
    x = x if x.dtype == torch.float64 else x.float()  # half has no bicubic
    if not differentiated(x):
        return _interpolate(x, size, mode)
    rows, columns = (_weights(x, n, side, mode) for n, side in zip(size, x.shape[2:], strict=True))
    return along_axes(x, rows, columns).permute(0, 3, 1, 2)


def differentiated(x: Tensor) -> bool:
    """Whether a gradient of ``x`` is wanted; not of what is exported, with one way for all."""
    return x.requires_grad and torch.is_grad_enabled() and not exporting()


def along_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply both axes of a map by a matrix each, in the type of the map.

    ``y[b, i, j, c] = sum_hw rows[i, h] columns[j, w] x[b, c, h, w]``
    """
    pixels = x.permute(0, 2, 3, 1)
    with no_autocast(x.device.type):
        y = (rows @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return columns @ y


def _weights(like: Tensor, size: int, given: int, mode: str) -> Tensor:
    """Return the matrix (size, given) of interpolation along an axis: that of unit vectors."""
    units = torch.eye(given, dtype=like.dtype, device=like.device)[None, None]
    return _interpolate(units, (size, given), mode)[0, 0]


def _interpolate(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    antialias = mode == "bicubic"
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=antialias)
