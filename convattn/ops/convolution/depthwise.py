"""Depth-wise convolution with a fast gradient of its weight.

oneDNN has a fast kernel for the gradient of a 3x3 depth-wise weight, and none for larger ones: in
bfloat16 the gradient of a 5x5 weight takes 20 times as long as the forward pass. The path "threes"
computes it from gradients of 3x3 weights that cover the larger weight, each with a shifted map.

| path        | computes                                                      |
|-------------|---------------------------------------------------------------|
| "threes"    | the gradient of the weight, 3x3 of its elements at a time     |
| "reference" | ``conv2d``                                                    |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import Call, Operator, Path, autocasts
from convattn.ops.processor import onednn_computes


@dataclass
class DepthwiseCall(Call):
    """Arguments of `depthwise_conv2d`, in the dtype of autocast."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    dilation: int

    @property
    def kernel_size(self) -> int:
        """The kernel size K."""
        return self.weight.shape[-1]


def _threes_refuse(call: DepthwiseCall) -> str | None:
    if call.stride != 1 or call.kernel_size < 3:
        return (
            "it computes kernels of 3x3 at least with stride 1, got "
            f"{call.kernel_size}x{call.kernel_size} with stride {call.stride}"
        )
    if call.x.dtype != call.weight.dtype:
        return "the map and the weight must have one type"
    if call.compiling:
        return "its backward pass is not an operator of PyTorch"
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    return None


def _prefers_threes(call: DepthwiseCall) -> bool:
    half = call.dtype == torch.bfloat16 and call.device == "cpu"
    wide = call.kernel_size > 3 and call.stride == 1
    return half and wide and call.grad and not call.compiling and onednn_computes(call.dtype)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int, dilation: int
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def _convolve_by_threes(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int, dilation: int
) -> Tensor:
    y: Tensor = _Depthwise.apply(x, weight, bias, padding, dilation)
    return y


# Measured on one core with AVX-512, in the local branches of GLNet-STL, kernel 5.
DEPTHWISE: Operator[DepthwiseCall] = Operator(
    "depthwise_conv2d",
    Path(
        "reference",
        _convolve,
        "PyTorch's operator; without AVX-512, in bfloat16, 1.5x to 2x as fast as threes",
    ),
    Path(
        "threes",
        _convolve_by_threes,
        "weight gradient in bfloat16 6.2x to 6.7x; float32 1.1x to 1.25x, not taken",
        _threes_refuse,
        _prefers_threes,
    ),
)


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> Tensor:
    """Return the depth-wise ``conv2d`` for a weight (C, 1, k, k), with C groups."""
    if x.is_cpu and x.dtype != torch.float64 and autocasts("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    y: Tensor = DEPTHWISE(DepthwiseCall(x, weight, bias, stride, padding, dilation))
    return y


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
        needed = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # a second derivative is required
            gradients = _gradients(grad, x, weight, ctx.padding, ctx.dilation, needed)
            return *gradients, None, None
        grad_x = grad_weight = grad_bias = None
        if needed[0]:
            only_x = [True, False, False]
            grad_x = _gradients(grad, x, weight, ctx.padding, ctx.dilation, only_x)[0]
        if needed[1]:
            grad_weight = weight_gradient(grad, x, weight, ctx.padding, ctx.dilation)
        if needed[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    """Return the gradient of a weight (C, 1, k, k), k at least 3, 3x3 elements at a time."""
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
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int, needed: list[bool]
) -> Any:
    C = x.shape[1]
    paddings, dilations = [padding] * 2, [dilation] * 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [C], [1, 1], paddings, dilations, False, [0, 0], C, needed
    )
