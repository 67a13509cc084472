"""The norm of each pixel's channels.

| path     | computes                                                 |
|----------|----------------------------------------------------------|
| "native" | in C, without gradients: `convattn.ops.kernels.native`   |
| "aten"   | ``layer_norm`` of the map with channels last             |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native import rows
from convattn.ops.old_dispatch import Rule, choose, describe

# Two cores, batch 8.
RULES: tuple[Rule, ...] = (
    ("native", rows.takes, "bfloat16 (64, 56x56): 0.16 ms, aten 0.63; (256, 14x14): 0.06, 0.08"),
    ("aten", lambda _: True, "gradients, other devices and types"),
)


def layer_norm_2d(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the channels of (B, C, H, W).

    ``shape`` is (C,), as ``layer_norm`` takes it.
    """
    pixels = x.permute(0, 2, 3, 1)
    if weight is not None and bias is not None and _has_rows(pixels, shape, weight, bias):
        y = rows.layer_norm(pixels, weight, bias, eps)
    else:
        y = F.layer_norm(pixels, shape, weight, bias, eps)
    return y.permute(0, 3, 1, 2)


def add_layer_norm_2d(
    x: Tensor,
    branch: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return ``x + branch`` and its norm, in one pass over both maps where a kernel does that."""
    pixels, more = x.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)
    if weight is not None and bias is not None and _has_rows(pixels, shape, weight, bias, more):
        both = rows.add_layer_norm(pixels, more, weight, bias, eps)
        return both[0].permute(0, 3, 1, 2), both[1].permute(0, 3, 1, 2)
    x = x + branch
    return x, layer_norm_2d(x, shape, weight, bias, eps)


def _has_rows(
    pixels: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, *others: Tensor
) -> bool:
    """Whether the rows lie one after another, in the type of what they are multiplied with."""
    # asked first: elsewhere sizes may be symbols
    if choose(RULES, describe(pixels, weight, bias, *others)) != "native":
        return False
    if any(
        t.shape != pixels.shape or t.dtype != pixels.dtype or not t.is_contiguous() for t in others
    ):
        return False
    return (
        pixels.is_contiguous()
        and weight.is_contiguous()
        and bias.is_contiguous()
        and pixels.dtype == weight.dtype == bias.dtype
        and weight.shape == bias.shape == pixels.shape[3:] == tuple(shape)
        and len(weight) <= rows.MOST_WIDTH
        and pixels.numel() > 0
    )
