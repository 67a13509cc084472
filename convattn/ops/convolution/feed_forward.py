"""The feed-forward network of a GLNet block in its deployed form: three convolutions and a GELU.

| path        | computes                                                                  |
|-------------|---------------------------------------------------------------------------|
| "parts"     | some images at a time, which limits the hidden map; without gradients     |
| "reference" | all images at once                                                        |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.convolution.gelu import conv2d_gelu, has_kernel
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels.native.conditions import refuses_tensors
from convattn.ops.kernels.native.library import DTYPES


@dataclass
class FeedForwardCall(Call):
    """Arguments of `feed_forward`."""

    x: Tensor
    weight1: Tensor
    bias1: Tensor | None
    middle_weight: Tensor | None
    middle_bias: Tensor | None
    weight2: Tensor
    bias2: Tensor | None


def _images_of_a_part(x: Tensor) -> int:
    return max(1, tuned.FFN_PIXELS // (x.shape[2] * x.shape[3]))


def _parts_refuse(call: FeedForwardCall) -> str | None:
    if call.compiling:
        return "its parts need fixed sizes, and sizes are symbols"
    return refuses_tensors(call)


def _prefers_parts(call: FeedForwardCall) -> bool:
    if call.device != "cpu" or call.dtype not in DTYPES or call.compiling:
        return False
    return has_kernel(call.dtype) and _images_of_a_part(call.x) < len(call.x)


def _at_once(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    middle_weight: Tensor | None,
    middle_bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
) -> Tensor:
    if middle_weight is None:
        z = conv2d_gelu(x, weight1, bias1)
    else:
        z = F.conv2d(x, weight1, bias1)
        padding, groups = middle_weight.shape[-1] // 2, middle_weight.shape[0]
        z = conv2d_gelu(z, middle_weight, middle_bias, padding=padding, groups=groups)
    return F.conv2d(z, weight2, bias2)


def _in_parts(x: Tensor, *weights: Any) -> Tensor:
    images = _images_of_a_part(x)
    y = torch.empty_like(x)
    for i in range(0, len(x), images):
        y[i : i + images] = _at_once(x[i : i + images], *weights)
    return y


# Measured on one core with AVX-512, batch 8, in the FFNs of GLNet.
FEED_FORWARD: Operator[FeedForwardCall] = Operator(
    "feed_forward",
    Path("reference", _at_once, "as fast as parts in bfloat16 and for small maps"),
    Path(
        "parts", _in_parts, "large maps in float32: 6 to 7 % faster", _parts_refuse, _prefers_parts
    ),
)


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    middle_weight: Tensor | None,
    middle_bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
) -> Tensor:
    """``y = W2 GELU(DW(W1 x))`` of a map (B, C, H, W), or ``W2 GELU(W1 x)``, with their biases.

    Args:
        x: the map.
        weight1: weight of the first 1x1 convolution, (C', C, 1, 1).
        bias1: (C',).
        middle_weight: weight of the depth-wise convolution, (C', 1, k, k) with an odd k; None for
            no depth-wise convolution.
        middle_bias: (C',).
        weight2: weight of the last 1x1 convolution, (C, C', 1, 1).
        bias2: (C,).

    Returns:
        A map (B, C, H, W).
    """
    y: Tensor = FEED_FORWARD(
        FeedForwardCall(x, weight1, bias1, middle_weight, middle_bias, weight2, bias2)
    )
    return y
