"""Interpolation of a map.

| path        | computes                                                               |
|-------------|------------------------------------------------------------------------|
| "products"  | a product with a matrix along each axis: its gradient is deterministic |
| "reference" | ``interpolate``, whose gradient is not deterministic on CUDA           |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import Call, Operator, Path, no_autocast


@dataclass
class ResizeCall(Call):
    """Arguments of `resize`; ``x`` is in float32 or float64."""

    x: Tensor
    size: tuple[int, int]
    mode: str


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate a map, without aligned corners.

    Args:
        x: the map (B, C, H, W).
        size: rows and columns of the result.
        mode: "bilinear", or "bicubic", which has antialiasing.

    Returns:
        (B, C, *size), in float32 or float64.
    """
    x = x if x.dtype == torch.float64 else x.float()  # float16 has no bicubic kernel
    resized: Tensor = RESIZE(ResizeCall(x, size, mode))
    return resized


def along_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply both axes of a map by a matrix each, in the type of the map.

    ``y[b, i, j, c] = sum_hw rows[i, h] columns[j, w] x[b, c, h, w]``
    """
    pixels = x.permute(0, 2, 3, 1)
    with no_autocast(x.device.type):
        y = (rows @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return columns @ y


def _multiply(x: Tensor, *, size: tuple[int, int], mode: str) -> Tensor:
    rows, columns = (_weights(x, n, side, mode) for n, side in zip(size, x.shape[2:], strict=True))
    return along_axes(x, rows, columns).permute(0, 3, 1, 2)


def _weights(like: Tensor, size: int, given: int, mode: str) -> Tensor:
    """Return the matrix (size, given) of interpolation along an axis, from unit vectors."""
    units = torch.eye(given, dtype=like.dtype, device=like.device)[None, None]
    return _interpolate(units, size=(size, given), mode=mode)[0, 0]


def _interpolate(x: Tensor, *, size: tuple[int, int], mode: str) -> Tensor:
    antialias = mode == "bicubic"
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=antialias)


RESIZE: Operator[ResizeCall] = Operator(
    "resize",
    Path("reference", _interpolate, "PyTorch's operator; an exported program needs it"),
    Path(
        "products",
        _multiply,
        "deterministic gradients on CUDA",
        prefers=lambda call: call.grad and not call.exporting,
    ),
)
