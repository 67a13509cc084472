"""The convolution path of ACmix: ``fc``, then a group convolution, on several paths.

B: batch. J: number of groups of q, k and v together, of d channels each. C: output channels. K:
kernel size. s: stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.acmix.deployed import MapConvolution, deployed_layers, deployed_map
from convattn.layers.acmix.projections import is_pointwise
from convattn.layers.foldable import is_bare, may_fold, may_read
from convattn.layers.folding import fold_scale
from convattn.ops.acmix.convolution import (
    ACMIX_CONVOLUTION,
    LayersCall,
    acmix_convolution,
    folded_convolution,
    shift_convolution,
)
from convattn.ops.acmix.from_map import convolution_path, map_convolution
from convattn.ops.fuse import shift_kernels

if TYPE_CHECKING:
    from convattn.layers.acmix.acmix import ACmix

# How the maps of the fully connected layer are shifted and summed.
SHIFTS = ("learned", "random", "fixed", "tensor")


class ShiftConv2d(nn.Conv2d):
    """A group convolution whose ``reset_parameters`` sets its kernels to shifts."""

    def reset_parameters(self) -> None:
        """Set the kernels to shifts: the convolution sums shifted maps."""
        with torch.no_grad():
            self.weight.copy_(shift_kernels(self.kernel_size[0], self.out_channels))


def make_group_convolution(
    shift: str, head_dim: int, out_chans: int, kernel_size: int, stride: int, dilation: int
) -> nn.Conv2d | None:
    """Return a convolution with d groups of K^2 input maps; None for shifts without weights."""
    if shift in ("fixed", "tensor"):
        return None
    conv = ShiftConv2d if shift == "learned" else nn.Conv2d
    sizes = (kernel_size, stride, dilation * (kernel_size // 2), dilation)
    return conv(head_dim * kernel_size**2, out_chans, *sizes, groups=head_dim, bias=False)


@dataclass
class ConvolutionPath:
    """``shift_and_sum(fc(q, k, v))`` of an ACmix, which holds the modules.

    ACmix creates this object at each use. The object reads the current modules of the ACmix, so the
    modules may be replaced, copied, moved and wrapped.

    Args:
        layer: the ACmix, with ``fc`` and ``dep_conv`` or, after ``reparameterize``, ``direct`` or
            ``folded``.
    """

    layer: ACmix

    def way(self, x: Tensor) -> str | None:
        """Return the path that computes the convolution.

        Args:
            x: the map that q, k and v are projections of.

        Returns:
            "direct", "dense" or "connected", which convolve ``x``; "projected", which convolves q,
            k and v; None if there is no convolution.
        """
        layer = self.layer
        if layer.direct is not None:
            return "direct"
        if layer.fc is None:
            return None if layer.folded is None else "projected"
        if not (self._may_take_map() and layer.projections.are_readable() and self._is_readable()):
            return "projected"
        return convolution_path(
            x,
            head_dim=layer.head_dim,
            out_chans=layer.out_chans,
            stride=layer.attn.stride,
            alone=layer.mix == "convolution",
            backend=layer.backend,
        )

    def from_map(self, x: Tensor, way: str) -> Tensor:
        """Convolve the map that q, k and v are projections of: (B, C, ceil(H / s), ceil(W / s))."""
        layer = self.layer
        if layer.direct is not None:
            return layer.direct(x)
        assert layer.fc is not None
        return map_convolution(
            x,
            layer.projections.weights,
            layer.projections.biases,
            layer.fc.weight,
            self._kernels(x),
            head_dim=layer.head_dim,
            fc_bias=layer.fc.bias,
            stride=layer.attn.stride,
            dilation=layer.dilation,
            path=way,
        )

    def from_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Convolve q, k and v, which have equal H and W: (B, C, ceil(H / s), ceil(W / s))."""
        layer = self.layer
        if layer.folded is not None:
            return folded_convolution(
                q,
                k,
                v,
                layer.folded.weight,
                head_dim=layer.head_dim,
                stride=layer.attn.stride,
                dilation=layer.dilation,
            )
        if not self._is_readable():
            return self._call_layers(q, k, v)
        assert layer.fc is not None
        if layer.shift == "tensor":
            return shift_convolution(
                q,
                k,
                v,
                layer.fc.weight,
                head_dim=layer.head_dim,
                num_outputs=layer.out_chans // layer.head_dim,
                fc_bias=layer.fc.bias,
                stride=layer.attn.stride,
                dilation=layer.dilation,
            )
        return acmix_convolution(
            q,
            k,
            v,
            layer.fc.weight,
            self._kernels(q),
            head_dim=layer.head_dim,
            fc_bias=layer.fc.bias,
            stride=layer.attn.stride,
            dilation=layer.dilation,
            backend=layer.backend,
        )

    def may_fold(self) -> bool:
        """Return whether ``fc`` and the group convolution exist and may be folded."""
        layer = self.layer
        if layer.fc is None or not may_fold(*self._layers()):
            return False
        return self._is_readable()

    def scale(self, factor: Tensor) -> None:
        """Multiply the output of this path by ``factor``: the weights of ``fc`` are scaled."""
        layer = self.layer
        assert layer.fc is not None
        fold_scale(layer.fc, factor.to(layer.fc.weight.device))

    def deployed_from_map(self) -> MapConvolution | None:
        """Return the deployed form that convolves the input of the projections, or None."""
        layer = self.layer
        projections = layer.projections
        if not self._may_take_map() or not may_read(*projections.layers):
            return None
        if not projections.are_readable():
            return None
        assert layer.fc is not None
        return deployed_map(
            projections.layers,
            layer.fc,
            self._kernels(layer.fc.weight),
            head_dim=layer.head_dim,
            stride=layer.attn.stride,
            dilation=layer.dilation,
        )

    def deployed_from_projected(self) -> nn.Conv2d | None:
        """Return one convolution of q, k and v for both layers, or None if it is slower."""
        layer = self.layer
        fc = layer.fc
        if fc is None or layer.shift == "tensor":
            return None
        outputs = layer.out_chans // layer.head_dim
        call = LayersCall(fc.in_channels, outputs, layer.kernel_size, layer.attn.stride)
        if ACMIX_CONVOLUTION.choose(call, layer.backend).name != "folded":
            return None
        return deployed_layers(fc, self._kernels(fc.weight), layer.head_dim)

    def _may_take_map(self) -> bool:
        layer = self.layer
        return layer.attn.one_map and layer.shift != "tensor" and layer.backend == "auto"

    def _layers(self) -> list[nn.Module]:
        layer = self.layer
        return [part for part in (layer.fc, layer.dep_conv) if part is not None]

    def _is_readable(self) -> bool:
        """Return whether ``fc`` and ``dep_conv`` compute only what their weights define."""
        conv = self.layer.dep_conv
        return (conv is None or self._is_group_convolution(conv)) and is_pointwise(self.layer.fc)

    def _is_group_convolution(self, conv: nn.Conv2d) -> bool:
        """Return whether ``dep_conv`` computes the group convolution that its weight defines."""
        if type(conv) not in (nn.Conv2d, ShiftConv2d) or not is_bare(conv):
            return False
        layer, stride = self.layer, self.layer.attn.stride
        padding = layer.dilation * (layer.kernel_size // 2)
        sizes = (stride, stride), (padding, padding), (layer.dilation, layer.dilation)
        return (
            (conv.stride, conv.padding, conv.dilation) == sizes
            and conv.groups == layer.head_dim
            and conv.padding_mode == "zeros"
            and conv.bias is None
        )

    def _kernels(self, like: Tensor) -> Tensor:
        """Return the group convolution's kernels (C, K^2, K, K), or shifts in ``like``'s dtype."""
        layer = self.layer
        if layer.dep_conv is not None:
            return layer.dep_conv.weight
        return shift_kernels(
            layer.kernel_size, layer.out_chans, device=like.device, dtype=like.dtype
        )

    def _call_layers(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Call ``fc`` on each of the d channels as a separate image, then ``dep_conv``."""
        layer = self.layer
        assert layer.fc is not None
        groups = [x.unflatten(1, (-1, layer.head_dim)) for x in (q, k, v)]
        stacked = torch.cat(groups, dim=1).transpose(1, 2)  # (B, d, J, H, W)
        maps = layer.fc(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2]).flatten(1, 2)
        if layer.dep_conv is not None:
            return layer.dep_conv(maps)
        padding = layer.dilation * (layer.kernel_size // 2)
        sizes = (layer.attn.stride, padding, layer.dilation)
        return F.conv2d(maps, self._kernels(maps), None, *sizes, groups=layer.head_dim)
