"""Interpolation of a map by one matrix along each axis.

PyTorch's own interpolation has no deterministic gradient on CUDA; a product of matrices has one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._backend import no_autocast
from convattn.ops._script import scriptable


@scriptable("(Tensor x, int[2] size, str mode) -> Tensor")
def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate a map: ``y = R x S^T`` for each channel, without aligned corners.

    Args:
        x: the map (B, C, H, W).
        size: rows and columns of the result.
        mode: "bilinear", or "bicubic", which has antialiasing.

    Returns:
        (B, C, *size), in float32 or float64.
    """
    x = x if x.dtype == torch.float64 else x.float()  # half has no bicubic
    rows = _weights(x, size[0], x.shape[2], mode)
    columns = _weights(x, size[1], x.shape[3], mode)
    with no_autocast(x.device.type):
        return rows @ x @ columns.mT


def _weights(like: Tensor, size: int, given: int, mode: str) -> Tensor:
    """Return the matrix (size, given) of interpolation along an axis: that of unit vectors."""
    units = torch.eye(given, dtype=like.dtype, device=like.device)[None, None]
    antialias = mode == "bicubic"
    spread = F.interpolate(
        units, size=(size, given), mode=mode, align_corners=False, antialias=antialias
    )
    return spread[0, 0]
