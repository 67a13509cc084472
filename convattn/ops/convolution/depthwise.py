"""Depth-wise convolution whose weight gradient does not stall.

oneDNN has a fast kernel for the gradient of a 3x3 depth-wise weight, and none for wider ones: in
bfloat16 a 5x5 takes 20 times as long as its forward pass. The wide weight's gradient is that of
the 3x3 weights which cover it, each on the map moved by where it lies.

| path     | computes                                                      |
|----------|---------------------------------------------------------------|
| "threes" | the gradient of the weight three by three                     |
| "aten"   | ``conv2d``                                                    |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.old_dispatch import Case, Rule, choose, describe
from convattn.ops.processor import onednn_computes


def _threes(case: Case) -> bool:
    return (
        case.device == "cpu"
        and case.dtype == torch.bfloat16
        and case.grad
        and case.stride == 1
        and case.window > 3
        and not case.exporting
        and not torch.compiler.is_compiling()
        and not case.transformed
        and onednn_computes(case.dtype)
    )


# One core with AVX-512, the local branches of GLNet-STL, kernel 5.
RULES: tuple[Rule, ...] = (
    ("threes", _threes, "weight gradient in bfloat16 6.2x to 6.7x; float32 1.1x to 1.25x, left"),
    ("aten", lambda _: True, "the kernels of PyTorch: with AVX2 alone 1.5x to 2x"),
)


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> Tensor:
    """``conv2d(x, weight, bias, stride, padding, dilation)`` for a weight (C, 1, k, k)."""
    if x.device.type == "cpu" and x.dtype != torch.float64 and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    tensors = [x, weight] if bias is None else [x, weight, bias]
    case = describe(*tensors, stride=stride, window=weight.shape[-1])
    if choose(RULES, case) == "aten" or weight.dtype != x.dtype:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])
    return _Depthwise.apply(x, weight, bias, padding, dilation)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, bias, 1, padding, dilation, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            gradients = _gradients(grad, x, weight, ctx.padding, ctx.dilation, wanted)
            return *gradients, None, None
        of_x, of_weight, of_bias = wanted
        first = [of_x, False, False]
        grad_x = _gradients(grad, x, weight, ctx.padding, ctx.dilation, first)[0] if of_x else None
        grad_weight = None
        if of_weight:
            grad_weight = weight_gradient(grad, x, weight, ctx.padding, ctx.dilation)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if of_bias else None, None, None


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    """Gradient of the weight (C, 1, k, k) with k > 3, three rows and columns at a time."""
    k = weight.shape[-1]
    starts = [*range(0, k - 3, 3), k - 3]
    height, width = (n + 2 * dilation for n in grad.shape[2:])
    padded = F.pad(x, (padding,) * 4)
    result, three = torch.empty_like(weight), weight[:, :, :3, :3]
    for i in starts:
        rows = padded.narrow(2, i * dilation, height)
        for j in starts:
            part = rows.narrow(3, j * dilation, width)
            part = _gradients(grad, part, three, 0, dilation, [False, True, False])[1]
            result[:, :, i : i + 3, j : j + 3] = part
    return result


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int, wanted: list[bool]
) -> Any:
    C = x.shape[1]
    around, apart = [padding] * 2, [dilation] * 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [C], [1, 1], around, apart, False, [0, 0], C, wanted
    )
