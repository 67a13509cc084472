"""A convolution followed by a GELU.

| path        | computes                                                                   |
|-------------|----------------------------------------------------------------------------|
| "onednn"    | oneDNN's convolution, which applies the GELU to its results; no gradients  |
| "reference" | ``gelu(conv2d(x, weight, bias))``                                          |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels.native.conditions import refuses_tensors
from convattn.ops.kernels.native.library import DTYPES
from convattn.ops.processor import onednn_computes

_NAME = "_convolution_pointwise"


def _count_flops(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *_: Any,
    out_shape: Sequence[int],
    **__: Any,
) -> int:
    return conv_flop_count(list(x_shape), list(weight_shape), list(out_shape))


# PyTorch has no FLOP formula for this operator.
if hasattr(torch.ops.mkldnn, _NAME) and getattr(torch.ops.mkldnn, _NAME) not in flop_registry:
    register_flop_formula(getattr(torch.ops.mkldnn, _NAME))(_count_flops)


@dataclass
class ConvGeluCall(Call):
    """Arguments of `conv2d_gelu`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    padding: int
    groups: int


def has_kernel(dtype: torch.dtype) -> bool:
    """Return whether PyTorch has the fused operator, and oneDNN supports the dtype on this CPU."""
    is_enabled = torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, _NAME)
    return bool(is_enabled and onednn_computes(dtype))


def _onednn_refuses(call: ConvGeluCall) -> str | None:
    refusal = refuses_tensors(call)
    if refusal is not None:
        return refusal
    if not has_kernel(call.dtype):
        return f"oneDNN does not convolve {call.dtype} on this machine"
    if not call.alike:
        return "the map, the weight and the bias must have one type"
    # For maps in other layouts the kernel converts the layout before and after the convolution.
    if not call.x.is_contiguous(memory_format=torch.channels_last):
        return "it needs a map with channels last"
    return None if call.x.numel() > 0 else "the map has no pixel"


def _prefers_onednn(call: ConvGeluCall) -> bool:
    return call.device == "cpu" and call.dtype in DTYPES and not call.compiling


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, groups: int) -> Tensor:
    convolve = getattr(torch.ops.mkldnn, _NAME)
    y: Tensor = convolve(x, weight, bias, [padding] * 2, [1, 1], [1, 1], groups, "gelu", [], "none")
    return y


def _in_two_steps(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, groups: int
) -> Tensor:
    return F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))


# Measured on one core with AVX-512, batch 8, in the FFNs of GLNet.
CONV_GELU: Operator[ConvGeluCall] = Operator(
    "conv2d_gelu",
    Path("reference", _in_two_steps, "a gradient needs the input of the GELU"),
    Path(
        "onednn",
        _fused,
        "FFN in bfloat16 1.5x at (96, 56x56), 1.1x at (384, 14x14); in float32 more",
        _onednn_refuses,
        _prefers_onednn,
    ),
)


def conv2d_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int = 0, groups: int = 1
) -> Tensor:
    """Return the exact ``gelu(conv2d(x, weight, bias, padding=padding, groups=groups))``."""
    y: Tensor = CONV_GELU(ConvGeluCall(x, weight, bias, padding, groups))
    return y
