"""Layer norm over the channels of feature maps, also fused with a sum before it."""

from __future__ import annotations

import timm.layers
import torch.fx
from timm.layers import fast_layer_norm
from torch import Tensor, nn

from convattn.layers.foldable import may_reach_into
from convattn.ops.tokens.layer_norm import add_layer_norm_2d, layer_norm_2d

# One node each in torch.fx: they read dtypes.
torch.fx.wrap("layer_norm_2d")
torch.fx.wrap("add_layer_norm_2d")


class LayerNorm2d(timm.layers.LayerNorm2d):
    """timm's ``LayerNorm2d`` of a map (B, C, H, W), computed on the fastest path.

    ``y = (x - mean) / sqrt(variance + eps) * weight + bias``, over the channels of each pixel

    See `convattn.ops.tokens.layer_norm`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Norm a map (B, C, H, W)."""
        if self._fast_norm:  # a setting of timm: no cast to float32 under autocast
            pixels = x.permute(0, 2, 3, 1)
            pixels = fast_layer_norm(
                pixels, list(self.normalized_shape), self.weight, self.bias, self.eps
            )
            return pixels.permute(0, 3, 1, 2)
        return layer_norm_2d(x, self.normalized_shape, self.weight, self.bias, self.eps)


class AddLayerNorm2d(nn.Module):
    """The deployed form of a sum of two maps and its layer norm: one pass over both maps.

    Args:
        norm: the layer norm, whose weight and bias this module uses.
    """

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.normalized_shape = norm.normalized_shape
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x + branch`` and its norm, both (B, C, H, W)."""
        return add_layer_norm_2d(x, branch, self.normalized_shape, self.weight, self.bias, self.eps)


def fuse_with_sum(norm: nn.Module) -> nn.Module:
    """Return the module that replaces a norm after a sum in the deployed form."""
    if type(norm) is not LayerNorm2d or norm._fast_norm or not may_reach_into(norm):
        return norm
    return AddLayerNorm2d(norm)


def add_and_norm(x: Tensor, branch: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return ``x + branch`` and ``norm(x + branch)``."""
    if isinstance(norm, AddLayerNorm2d):
        total, normed = norm(x, branch)
        return total, normed
    x = x + branch
    return x, norm(x)
