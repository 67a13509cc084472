"""Window attention by the kernels in C, which read the map without a copy by windows.

C channels, K window, L = K^2 pixels of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native import heads
from convattn.ops.windows.layout import Layout, lay_out, mask_of, pad, unpad


def attend_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    scale: float | None,
) -> Tensor:
    """Attend in the windows of maps (B, C, H, W)."""
    layout = lay_out(q, window_size, shift)
    q, k, v = (pad(x, layout) for x in (q, k, v))
    return unpad(_attend(q, k, v, bias, layout, num_heads, scale), layout)


def attend_map_in_place(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    scale: float | None,
) -> Tensor:
    """Compute q, k and v by a 1x1 convolution of the map x, then attend in the windows."""
    layout = lay_out(x, window_size, shift)
    q, k, v = F.conv2d(pad(x, layout), weight, offset).chunk(3, 1)
    return unpad(_attend(q, k, v, bias, layout, num_heads, scale), layout)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    layout: Layout,
    num_heads: int,
    scale: float | None,
) -> Tensor:
    """Attend in padded maps, q, k and v (B, C, H, W) each."""
    mask = None if bias is None else heads.lanes(bias.float().mT)[None]
    if layout.padded or layout.shifted:
        pixels = layout.window_size**2
        if mask is None:
            mask = q.new_zeros(1, 1, pixels, heads.whole(pixels), dtype=torch.float32)
        mask = mask_of(
            layout, mask, q.device
        )  # the mask without bias is symmetric, so that it also fits the transposed bias
    q, k, v = (_with_channels_last(x) for x in (q, k, v))
    scale = (q.shape[1] // num_heads) ** -0.5 if scale is None else scale
    return heads.attend_windows(
        q, k, v, mask, num_heads=num_heads, window_size=layout.window_size, scale=scale
    )


def _with_channels_last(x: Tensor) -> Tensor:
    x = x.resolve_neg()  # a view may have a negative bit, which the kernels do not read
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
