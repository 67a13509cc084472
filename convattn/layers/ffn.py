"""The feed-forward network of the GLNet blocks."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.checks import check_map, check_odd, check_positive
from convattn.layers.depthwise import depthwise
from convattn.layers.foldable import may_fold_inside, may_read
from convattn.layers.folding import fold_affine, fold_identity
from convattn.layers.one_node import OneNode
from convattn.ops.convolution.feed_forward import feed_forward


class ConvMlp(OneNode):
    """Feed-forward network of 1x1 convolutions, with an optional depth-wise one in the middle.

    ``z = fc1(x);  z = z + DW(z);  y = fc2(GELU(z))``

    Args:
        dim: channels of input and output.
        hidden_dim: channels of the hidden map.
        dwconv: whether to add the depth-wise convolution.
        kernel_size: kernel size of the depth-wise convolution, odd.

    Raises:
        ValueError: a size that is not positive, or an even kernel.

    GLMix (arXiv 2411.14429), the FFN of GLNet. The deployed form is one operator, which does
    not call the inner layers: see `convattn.ops.convolution.feed_forward`.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, dwconv: bool = False, kernel_size: int = 3
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("hidden_dim", hidden_dim)
        check_odd("kernel_size", kernel_size)
        self.dim = dim
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = depthwise(hidden_dim, kernel_size) if dwconv else None
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        self.folded = False  # whether ``dwconv`` adds its input to its output
        self.fused = False  # whether one operator computes the network

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, dim, H, W)."""
        check_map(x, channels=self.dim)
        if self.fused:
            return self._in_one_step(x)
        z = self.fc1(x)
        if self.dwconv is not None:
            z = self.dwconv(z) if self.folded else z + self.dwconv(z)
        y: Tensor = self.fc2(self.act(z))
        return y

    def _in_one_step(self, x: Tensor) -> Tensor:
        fc1, middle, fc2 = self.fc1, self.dwconv, self.fc2
        weight, bias = (None, None) if middle is None else (middle.weight, middle.bias)
        return feed_forward(x, fc1.weight, fc1.bias, weight, bias, fc2.weight, fc2.bias)

    def reparameterize(self) -> None:
        """Fold ``z + DW(z)`` into one convolution, and let one operator compute the network.

        If a layer was replaced or has hooks, the layers are still called one by one.
        """
        if self.dwconv is None:
            self.folded = True
        elif not self.folded:
            self.folded = may_fold_inside(self, self.dwconv) and fold_identity(self.dwconv)
        self.fused = self.folded and self._may_fuse()

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Replace the outputs y by ``scale * y + shift``, both (dim,); False if impossible."""
        return fold_affine(self.fc2, scale, shift)

    def _may_fuse(self) -> bool:
        """Return whether the layers compute what `feed_forward` does."""
        fc1, middle, act, fc2 = self.fc1, self.dwconv, self.act, self.fc2
        layers = [layer for layer in (fc1, act, fc2, middle) if layer is not None]
        if not (may_fold_inside(self) and may_read(*layers)):
            return False
        if type(act) is not nn.GELU or act.approximate != "none":
            return False
        if not (_keeps_size(fc1, 1) and _keeps_size(fc2, 1)):
            return False
        return middle is None or _keeps_size(middle, middle.kernel_size[0], fc1.out_channels)


def _keeps_size(conv: nn.Module, kernel_size: int, groups: int = 1) -> bool:
    """Return whether a module is a zero-padded convolution that keeps the size of the map."""
    if not isinstance(conv, nn.Conv2d):
        return False
    sizes = conv.kernel_size, conv.stride, conv.dilation, conv.padding
    p = kernel_size // 2
    same = sizes == ((kernel_size, kernel_size), (1, 1), (1, 1), (p, p))
    return same and conv.groups == groups and conv.padding_mode == "zeros"
