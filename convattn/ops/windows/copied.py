"""Window attention on a copy of the map in the order of the windows, by batched products or sdpa.

B batch, C channels, N heads of d = C / N channels, K window, L = K^2 pixels of a window, n windows
of an image. The map is copied once; the heads are views of the copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import derivable
from convattn.ops.windows.layout import Layout, lay_out, mask_of, merge, pad, partition, unpad

# (q, k, v, mask, scale): q, k and v (B n, N, L, d), mask (B n or 1, N or 1, L, L) or None.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]


def in_copied_windows(attend: Attend) -> Callable[..., Tensor]:
    """Return a path of ``window_attention`` that applies ``attend`` to copies of q, k and v."""

    def run(
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
        layout = lay_out(q, window_size, shift)
        tokens = (partition(pad(x, layout), layout).flatten(1, 2) for x in (q, k, v))
        q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in tokens)
        mask = _mask(layout, bias, q, v.shape[0] // (layout.grid[0] * layout.grid[1]))
        return unpad(merge(attend(q, k, v, mask, scale), layout), layout)

    return run


def in_copied_map(attend: Attend) -> Callable[..., Tensor]:
    """Return a path of ``map_window_attention`` that applies ``attend``.

    The path copies the map, and a 1x1 convolution computes q, k and v from the copy.
    """

    def run(
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
        layout = lay_out(x, window_size, shift)
        # (B n, C_in, K, K), channels last
        pixels = partition(pad(x, layout), layout).permute(0, 3, 1, 2)
        projected = F.conv2d(pixels, weight, offset).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = projected.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        out = attend(q, k, v, _mask(layout, bias, q, x.shape[0]), scale)
        return unpad(merge(out, layout), layout)

    return run


def attend_by_sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attend by ``scaled_dot_product_attention``, which stores no logits for the backward pass."""
    with derivable():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attend by a batched product, a softmax and a second batched product."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    batch = q.shape[:2]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    if mask is None:
        logits = torch.bmm(q * scale, k.mT)
    else:
        mask = mask.expand(*batch, -1, -1).flatten(0, 1)
        logits = torch.baddbmm(mask, q, k.mT, alpha=scale)
    # A softmax in bfloat16 takes more than twice as long as in float32.
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(-1, dtype=wide).to(v.dtype)
    return torch.bmm(weights, v).unflatten(0, batch)


def _mask(layout: Layout, bias: Tensor | None, q: Tensor, images: int) -> Tensor | None:
    mask = None if bias is None else bias.to(q.dtype)[None]
    if not layout.padded and not layout.shifted:
        return mask
    pixels = layout.window_size**2
    mask = q.new_zeros(1, 1, pixels, pixels) if mask is None else mask
    mask = mask_of(layout, mask, q.device)
    return mask.expand(images, -1, -1, -1, -1).flatten(0, 1)
