"""A convolution and the GELU behind it, in one pass over the map where a kernel does both.

| path     | computes                                                                  |
|----------|---------------------------------------------------------------------------|
| "onednn" | oneDNN's convolution with the activation on its results, without gradients |
| "aten"   | ``gelu(conv2d(x, weight, bias))``                                         |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.old_dispatch import Case, Rule, choose, describe, unwatched
from convattn.ops.processor import onednn_computes


def is_onednn(case: Case) -> bool:
    """Whether oneDNN convolves such tensors here, and no gradient or other observer needs more."""
    return (
        case.dtype in (torch.float32, torch.bfloat16) and unwatched(case) and has_kernel(case.dtype)
    )


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether PyTorch has the fused operator, and the processor what it needs for the type."""
    switched_on = torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, _NAME)
    return bool(switched_on and onednn_computes(dtype))


_NAME = "_convolution_pointwise"

# Measured on one core with AVX-512, batch 8, the FFNs of GLNet: the map between is written once.
RULES: tuple[Rule, ...] = (
    ("onednn", is_onednn, "FFN in bfloat16 1.5x at (96, 56), 1.1x at (384, 14); float32 more"),
    ("aten", lambda _: True, "gradients need what is before the GELU"),
)


def fuses(*tensors: Tensor) -> bool:
    """Whether a convolution of these is fused: on a CPU, and nobody differentiates or watches."""
    return choose(RULES, describe(*tensors)) == "onednn"


def conv2d_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 0, groups: int = 1
) -> Tensor:
    """``gelu(conv2d(x, weight, bias, padding=padding, groups=groups))`` with the exact GELU."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    alike = all(t.dtype == x.dtype for t in tensors)
    # The kernel keeps channels-last maps; one in the other layout it would turn there and back.
    # The layout is asked last: inside of a function transform a map has none.
    fused = alike and x.numel() > 0 and fuses(*tensors)
    if not (fused and x.is_contiguous(memory_format=torch.channels_last)):
        return F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))
    convolve = getattr(torch.ops.mkldnn, _NAME)
    return convolve(x, weight, bias, [padding] * 2, [1, 1], [1, 1], groups, "gelu", [], "none")
