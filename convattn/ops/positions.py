"""Positions along an axis: of queries, and of the pixels in their windows on a mirrored map."""

from __future__ import annotations

import torch
from torch import Tensor


def ceil_divide(size: int, step: int) -> int:
    """Return the quotient rounded up, in a form that PyTorch can simplify for symbolic sizes."""
    return (size + step - 1) // step


def reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions at the borders of an axis repeatedly, until they are inside.

    ``0 1 2`` continues as ``... 2 1 [0 1 2] 1 0 1 2 ...``; an axis of one pixel repeats it.
    """
    period = max(2 * size - 2, 1)
    inside = positions.abs() % period
    return torch.minimum(inside, period - inside)


def padded_positions(size: int, reach: int, device: torch.device) -> Tensor:
    """Return the position of each pixel of an axis that is mirrored by ``reach`` at both ends."""
    return reflect(torch.arange(-reach, size + reach, device=device), size)


def window_positions(
    size: int, *, window_size: int, stride: int, dilation: int, device: torch.device
) -> Tensor:
    """Return the positions in the window of every ``stride``-th pixel: (size / stride, K)."""
    centres = torch.arange(0, size, stride, device=device)
    taps = torch.arange(window_size, device=device) - window_size // 2
    return reflect(centres[:, None] + dilation * taps, size)
