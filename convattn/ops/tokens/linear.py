"""A linear layer of tokens.

| path        | computes                                                                |
|-------------|-------------------------------------------------------------------------|
| "conv"      | a 1x1 convolution of the tokens as a map of one row, without gradients  |
| "reference" | ``linear``                                                              |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.convolution.gelu import has_kernel
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels.native.conditions import refuses_tensors
from convattn.ops.kernels.native.library import DTYPES


@dataclass
class LinearCall(Call):
    """Arguments of `linear`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


def _conv_refuses(call: LinearCall) -> str | None:
    refusal = refuses_tensors(call)
    if refusal is not None:
        return refusal
    if call.x.dim() != 3:
        return f"it computes tokens (B, N, C), got {tuple(call.x.shape)}"
    if not call.alike:
        return "the tokens, the weight and the bias must have one type"
    if not call.x.is_contiguous():
        return "it needs contiguous tokens"
    return None if call.x.numel() > 0 else "there is no token"


def _prefers_conv(call: LinearCall) -> bool:
    if call.device != "cpu" or call.dtype not in DTYPES or call.compiling or call.grad:
        return False
    many = call.dtype == torch.float32 or (
        call.x.numel() >= tuned.MANY_TOKENS * call.weight.shape[1]
    )
    # With one thread PyTorch takes another kernel for small 1x1 convolutions.
    return many and torch.get_num_threads() > 1 and has_kernel(call.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    B, N, C = x.shape
    # The strides are set explicitly: with one image, the batch stride of x may have any value.
    row = x.as_strided((B, C, 1, N), (N * C, 1, N * C, C))
    return F.conv2d(row, weight[:, :, None, None], bias).squeeze(2).transpose(1, 2)


# Measured on two CPU cores, from 256 to 768 channels.
LINEAR: Operator[LinearCall] = Operator(
    "linear",
    Path("reference", F.linear, "bfloat16, 8 x 64 tokens: 0.29 ms, conv 0.28; 8 x 49: 0.28, 0.37"),
    Path(
        "conv",
        _convolve,
        "8 x 196 tokens: float32 1.4 ms, reference 2.9; bfloat16 0.67, 0.81",
        _conv_refuses,
        _prefers_conv,
    ),
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x weight^T + bias`` for tokens (B, N, C)."""
    y: Tensor = LINEAR(LinearCall(x, weight, bias))
    return y
