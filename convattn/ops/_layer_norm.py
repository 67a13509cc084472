"""The norm of each pixel's channels.

| path     | computes                                                 |
|----------|----------------------------------------------------------|
| "native" | in C, without gradients: `convattn.ops.kernels.native`   |
| "aten"   | ``layer_norm`` of the map with channels last             |
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from convattn.ops._backend import Case, Rule, choose, describe
from convattn.ops._script import scriptable
from convattn.ops.kernels.native import rows

# Two cores, batch 8.
RULES: tuple[Rule, ...] = (
    ("native", rows.takes, "bfloat16 (64, 56x56): 0.16 ms, aten 0.63; (256, 14x14): 0.06, 0.08"),
    ("aten", lambda _: True, "gradients, other devices and types"),
)


@scriptable("(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor")
def layer_norm_2d(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the channels of (B, C, H, W)."""
    pixels = x.permute(0, 2, 3, 1)
    if weight is not None and bias is not None and _plain(pixels, weight, bias):
        y = rows.layer_norm(pixels, weight, bias, eps)
    else:
        y = F.layer_norm(pixels, pixels.shape[3:], weight, bias, eps)
    return y.permute(0, 3, 1, 2)


def _plain(pixels: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the rows lie one after another, in the type of what they are multiplied with."""
    tensors = (pixels, weight, bias)
    if choose(RULES, _case(*tensors)) != "native":  # asked first: sizes may be symbols elsewhere
        return False
    return (
        all(t.dtype == pixels.dtype and t.is_contiguous() for t in tensors)
        and len(weight) == len(bias) == pixels.shape[3]
        and pixels.numel() > 0
    )


def _case(pixels: Tensor, weight: Tensor, bias: Tensor) -> Case:
    return describe(pixels.permute(0, 3, 1, 2), weight, bias)
