"""Depth-wise convolutions that keep the size of the map."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.ops.convolution.depthwise import depthwise_conv2d


def depthwise(
    dim: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    """Return a depth-wise convolution whose padding keeps the size of the map at stride 1."""
    padding = dilation * (kernel_size // 2)
    kind = nn.Conv2d if kernel_size <= 3 else WideDepthwise
    return kind(dim, dim, kernel_size, stride, padding, dilation=dilation, groups=dim, bias=bias)


class WideDepthwise(nn.Conv2d):
    """Depth-wise convolution with a kernel above 3x3, whose gradient has a faster path."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) as `torch.nn.Conv2d` does."""
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        return depthwise_conv2d(x, self.weight, self.bias, stride, padding, dilation)
