"""The feed-forward network of the GLNet blocks."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.layers.folding import fold_identity
from convattn.ops._checks import check_map, check_odd, check_positive


class ConvMlp(nn.Module):
    """Feed-forward network of 1x1 convolutions, with an optional depth-wise one in the middle.

    ``z = fc1(x);  z = z + DW(z);  y = fc2(GELU(z))``

    Args:
        dim: channels of input and output.
        hidden_dim: channels between.
        dwconv: whether to add the depth-wise convolution.
        kernel_size: its kernel, odd.

    Raises:
        ValueError: a size that is not positive, or an even kernel.

    GLMix (arXiv 2411.14429), the FFN of GLNet.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, dwconv: bool = False, kernel_size: int = 3
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("hidden_dim", hidden_dim)
        check_odd("kernel_size", kernel_size)
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = depthwise(hidden_dim, kernel_size) if dwconv else None
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, dim, H, W)."""
        check_map(x, channels=self.fc1.in_channels)
        z = self.fc1(x)
        if self.dwconv is not None:
            z = self.dwconv(z) if self.folded else z + self.dwconv(z)
        return self.fc2(self.act(z))

    def reparameterize(self) -> None:
        """Make ``z + DW(z)`` one convolution, exactly; there is no way back."""
        if self.dwconv is not None and not self.folded:
            fold_identity(self.dwconv)
        self.folded = True


def depthwise(
    dim: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    """Return a depth-wise convolution that keeps the size of the map, but for the stride."""
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(
        dim, dim, kernel_size, stride, padding, dilation=dilation, groups=dim, bias=bias
    )
