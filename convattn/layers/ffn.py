"""The feed-forward network of the GLNet blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.checks import check_map, check_odd, check_positive
from convattn.layers.bare import is_unseen
from convattn.layers.depthwise import WideDepthwise, depthwise
from convattn.layers.foldable import may_fold_inside
from convattn.layers.folding import fold_identity, fold_scale, fold_shift, may_scale
from convattn.layers.one_node import as_one_node, is_traced
from convattn.ops.convolution.gelu import conv2d_gelu, fuses

# Pixels that the network takes at a time where no gradient is wanted: some images of a batch. The
# wide map between its layers never has more, but for one image that is larger, and its memory,
# the size of which is the same from part to part, is used again.
PIXELS = 2**13


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
        if is_traced(x):
            return as_one_node(self, x)
        check_map(x, channels=self.fc1.in_channels)
        return self._in_parts(x)

    def _hidden(self, x: Tensor) -> Tensor:
        z = self.fc1(x)
        if self.dwconv is not None:
            z = self.dwconv(z) if self.folded else z + self.dwconv(z)
        return self.act(z)

    def _in_parts(self, x: Tensor) -> Tensor:
        if not self._may_part(x):  # asked first: sizes may be symbols where it may not
            return self.fc2(self._fused_hidden(x))
        images = max(1, PIXELS // (x.shape[2] * x.shape[3]))
        if images >= x.shape[0]:
            return self.fc2(self._fused_hidden(x))
        out = torch.empty_like(x)
        for i in range(0, x.shape[0], images):
            out[i : i + images] = self.fc2(self._fused_hidden(x[i : i + images]))
        return out

    def _may_part(self, x: Tensor) -> bool:
        """Whether nobody sees that the layers take some images after others.

        A layer that somebody put in, or gave another weight, might look at the whole batch.
        """
        own = (nn.Conv2d, WideDepthwise, nn.GELU, type(None))
        for m in self._modules.values():  # asked of every map: what walks a model is slower
            if type(m) not in own or (m is not None and not is_unseen(m)):
                return False
        return fuses(x, *(self.parameters() if torch.is_grad_enabled() else ()))

    def _fused_hidden(self, x: Tensor) -> Tensor:
        if self.dwconv is None:
            return _activated(self.fc1, self.act, x)
        if self.folded:
            return _activated(self.dwconv, self.act, self.fc1(x))
        return self._hidden(x)

    def reparameterize(self) -> None:
        """Make ``z + DW(z)`` one convolution, exactly, if it may be folded."""
        if self.dwconv is None:
            self.folded = True
        elif not self.folded:
            self.folded = may_fold_inside(self, self.dwconv) and fold_identity(self.dwconv)

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Make the outputs ``scale * y + shift``, both (dim,), for good; False if not possible."""
        if not may_scale(self.fc2):
            return False
        fold_scale(self.fc2, scale)
        fold_shift(self.fc2, shift)
        return True


def _activated(conv: nn.Conv2d, act: nn.Module, x: Tensor) -> Tensor:
    """``act(conv(x))``, in one step where nobody looks between the two."""
    plain = type(conv) is nn.Conv2d and type(act) is nn.GELU and act.approximate == "none"
    k = conv.kernel_size[0]
    steps = (conv.stride, conv.dilation, conv.padding, conv.padding_mode)
    keeps = steps == ((1, 1), (1, 1), (k // 2, k // 2), "zeros")  # somebody may have put it in
    bare = is_unseen(conv) and is_unseen(act)
    if not (plain and keeps and bare) or torch.compiler.is_compiling():
        return act(conv(x))
    return conv2d_gelu(x, conv.weight, conv.bias, padding=k // 2, groups=conv.groups)
