"""The layout of a grid of windows in a map, and the mask of pixels that must not attend.

B batch, C channels, N heads of d = C / N channels, K window, L = K^2 pixels of a window, n windows.

An axis that K does not divide is padded. The padding is before the pixels that the shift rolled
around the end of the axis, so that these pixels stay together in the last window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.positions import ceil_divide


@dataclass(frozen=True)
class Layout:
    """The windows of a map.

    Attributes:
        window_size: K.
        grid: rows and columns of windows.
        gaps: the start and the end of the padding of each axis.
        padded: the axes that are padded.
        shifted: whether the shift rolled pixels around the end of an axis.
    """

    window_size: int
    grid: tuple[int, int]
    gaps: list[tuple[int, int]]
    padded: tuple[int, ...]
    shifted: bool


def lay_out(x: Tensor, window_size: int, shift: tuple[int, int]) -> Layout:
    """Return the layout of the windows of a map (B, C, H, W)."""
    H, W = x.shape[2:]
    grid = ceil_divide(H, window_size), ceil_divide(W, window_size)
    gaps = [_gap(*axis, window_size) for axis in zip((H, W), grid, shift, strict=True)]
    return Layout(window_size, grid, gaps, _padded_axes(H, W, window_size), max(shift) > 0)


def _padded_axes(height: int, width: int, window_size: int) -> tuple[int, ...]:
    """Return the axes whose size K does not divide.

    A compiled graph computes either the maps that K divides, or all other maps. It therefore has
    one guard on sizes, and its padding may be empty.
    """
    left_over = height % window_size, width % window_size
    if left_over[0] + left_over[1] == 0:
        return ()
    if torch.compiler.is_compiling():
        return 2, 3
    return tuple(dim for dim, rest in zip((2, 3), left_over, strict=True) if rest)


def _gap(size: int, windows: int, shift: int, window_size: int) -> tuple[int, int]:
    """Return the start and the end of the padding of an axis."""
    start = max(size - shift, 0)
    return start, start + windows * window_size - size


def pad(x: Tensor, layout: Layout) -> Tensor:
    """Pad a map with zeros, so that K divides its sizes."""
    for dim in layout.padded:
        start, end = layout.gaps[dim - 2]
        shape = list(x.shape)
        shape[dim] = end - start
        after = x.narrow(dim, start, x.shape[dim] - start)
        x = torch.cat([x.narrow(dim, 0, start), x.new_zeros(shape), after], dim)
    return x


def unpad(x: Tensor, layout: Layout) -> Tensor:
    """Remove the padding of `pad`."""
    for dim in layout.padded:
        start, end = layout.gaps[dim - 2]
        after = x.narrow(dim, end, x.shape[dim] - end)
        x = torch.cat([x.narrow(dim, 0, start), after], dim)
    return x


def partition(x: Tensor, layout: Layout) -> Tensor:
    """Cut a padded map into windows, channels last: (B n, K, K, C)."""
    rows, columns = ((n, layout.window_size) for n in layout.grid)
    x = x.unflatten(3, columns).unflatten(2, rows)
    return x.permute(0, 2, 4, 3, 5, 1).contiguous().flatten(0, 2)


def merge(out: Tensor, layout: Layout) -> Tensor:
    """Return the tokens of windows (B n, N, L, d) as a channels-last map (B, C, H, W)."""
    out = out.transpose(1, 2).flatten(2)
    K, rows, columns = layout.window_size, *layout.grid
    out = out.reshape(-1, rows, columns, K, K, out.shape[2])
    return out.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def mask_of(layout: Layout, bias: Tensor, device: torch.device) -> Tensor:
    """Return the mask, with the bias, that is added to the logits: (n, N or 1, L, L).

    Args:
        layout: the layout of the windows.
        bias: (1, N or 1, L, L). If its last dimension is longer than L, the mask is as long.
        device: the device of the queries and of the bias.
    """
    rows, columns = (
        _segments(gap, windows, layout.window_size, device)
        for gap, windows in zip(layout.gaps, layout.grid, strict=True)
    )
    segments = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    segments = segments.flatten(2).flatten(0, 1)
    masked = segments[:, :, None] != segments[:, None, :]
    masked = F.pad(masked, (0, bias.shape[3] - masked.shape[2]))
    return bias.masked_fill(masked[:, None], float("-inf"))


def _segments(gap: tuple[int, int], windows: int, window_size: int, device: torch.device) -> Tensor:
    """Label the pixels of an axis by window: 0 not rolled, 1 padding, 2 rolled around the end."""
    places = torch.arange(windows * window_size, device=device)
    segments = (places >= gap[0]).long() + (places >= gap[1]).long()
    return segments.unflatten(0, (windows, window_size))
