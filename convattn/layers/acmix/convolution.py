"""The convolution path of ACmix: ``fc`` and a group convolution, and the ways to compute both.

B batch, J groups of d channels of q, k and v, C output channels, K kernel, s stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.acmix.deployed import MapConvolution, deployed_layers, deployed_map
from convattn.layers.acmix.projections import Projections, is_pointwise
from convattn.layers.bare import is_bare
from convattn.layers.foldable import may_fold, may_read
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

# How the maps of the fully connected layer are shifted and summed.
SHIFTS = ("learned", "random", "fixed", "tensor")


class ShiftConv2d(nn.Conv2d):
    """A group convolution whose ``reset_parameters`` makes it a sum of shifts."""

    def reset_parameters(self) -> None:
        """Start at the shifts."""
        with torch.no_grad():
            self.weight.copy_(shift_kernels(self.kernel_size[0], self.out_channels))


def make_group_convolution(
    shift: str, head_dim: int, out_chans: int, kernel_size: int, stride: int, dilation: int
) -> nn.Conv2d | None:
    """Return the convolution from K^2 maps in each of d groups; None for shifts without weights."""
    if shift in ("fixed", "tensor"):
        return None
    conv = ShiftConv2d if shift == "learned" else nn.Conv2d
    sizes = (kernel_size, stride, dilation * (kernel_size // 2), dilation)
    return conv(head_dim * kernel_size**2, out_chans, *sizes, groups=head_dim, bias=False)


@dataclass
class ConvolutionPath:
    """``shift_and_sum(fc(q, k, v))`` on the modules of an ACmix.

    ACmix makes this object at each use, from the submodules that it has then: it registers them,
    so that they keep their names, and may be replaced, copied, moved and wrapped.

    Args:
        projections: of q, k and v.
        fc: from J groups to K^2 maps for each of d channels; None if folded, or if there is none.
        dep_conv: the group convolution; None for shifts without weights, and where ``fc`` is None.
        direct: the deployed form that takes the map of the projections, or None.
        folded: the deployed form that takes q, k and v, or None.
        one_map: whether q, k and v are projections of one map, as the convolution takes them.
        alone: whether nothing else needs q, k and v.
        shift: one of `SHIFTS`.
        head_dim: d.
        out_chans: C.
        kernel_size: K.
        stride: s.
        dilation: of the convolution.
        backend: of ``acmix_convolution``.
    """

    projections: Projections
    fc: nn.Conv2d | None
    dep_conv: nn.Conv2d | None
    direct: MapConvolution | None
    folded: nn.Conv2d | None
    one_map: bool
    alone: bool
    shift: str
    head_dim: int
    out_chans: int
    kernel_size: int
    stride: int
    dilation: int
    backend: str

    def way(self, x: Tensor) -> str | None:
        """Return what is convolved.

        Args:
            x: the map of the projections.

        Returns:
            "direct", "dense" or "connected" for the map, "projected" for q, k and v, None for no
            convolution.
        """
        if self.direct is not None:
            return "direct"
        if self.fc is None:
            return None if self.folded is None else "projected"
        if not (self._may_take_map() and self.projections.are_readable() and self._is_readable()):
            return "projected"
        return convolution_path(
            x,
            head_dim=self.head_dim,
            out_chans=self.out_chans,
            stride=self.stride,
            alone=self.alone,
            backend=self.backend,
        )

    def from_map(self, x: Tensor, way: str) -> Tensor:
        """Convolve the map of the projections: (B, C, ceil(H / s), ceil(W / s))."""
        if self.direct is not None:
            return self.direct(x)
        assert self.fc is not None
        return map_convolution(
            x,
            self.projections.weights,
            self.projections.biases,
            self.fc.weight,
            self._kernels(x),
            head_dim=self.head_dim,
            fc_bias=self.fc.bias,
            stride=self.stride,
            dilation=self.dilation,
            path=way,
        )

    def from_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Convolve q, k and v, maps of one size: (B, C, ceil(H / s), ceil(W / s))."""
        if self.folded is not None:
            return folded_convolution(
                q,
                k,
                v,
                self.folded.weight,
                head_dim=self.head_dim,
                stride=self.stride,
                dilation=self.dilation,
            )
        if not self._is_readable():
            return self._call_layers(q, k, v)
        assert self.fc is not None
        if self.shift == "tensor":
            return shift_convolution(
                q,
                k,
                v,
                self.fc.weight,
                head_dim=self.head_dim,
                num_outputs=self.out_chans // self.head_dim,
                fc_bias=self.fc.bias,
                stride=self.stride,
                dilation=self.dilation,
            )
        return acmix_convolution(
            q,
            k,
            v,
            self.fc.weight,
            self._kernels(q),
            head_dim=self.head_dim,
            fc_bias=self.fc.bias,
            stride=self.stride,
            dilation=self.dilation,
            backend=self.backend,
        )

    def may_fold(self) -> bool:
        """Whether ``fc`` and the group convolution are there and may be folded."""
        if self.fc is None or not may_fold(*self._layers()):
            return False
        return self._is_readable()

    def scale(self, factor: Tensor) -> None:
        """Multiply what the path computes, in the weights of ``fc``."""
        assert self.fc is not None
        fold_scale(self.fc, factor.to(self.fc.weight.device))

    def deployed_from_map(self) -> MapConvolution | None:
        """Return the deployed form that takes the map of the projections, or None."""
        projections = self.projections
        if not self._may_take_map() or not may_read(*projections.layers):
            return None
        if not projections.are_readable():
            return None
        assert self.fc is not None
        return deployed_map(
            projections.layers,
            self.fc,
            self._kernels(self.fc.weight),
            head_dim=self.head_dim,
            stride=self.stride,
            dilation=self.dilation,
        )

    def deployed_from_projected(self) -> nn.Conv2d | None:
        """Return both layers as one that takes q, k and v, or None if that is more work."""
        fc = self.fc
        if fc is None or self.shift == "tensor":
            return None
        outputs = self.out_chans // self.head_dim
        call = LayersCall(fc.in_channels, outputs, self.kernel_size, self.stride)
        if ACMIX_CONVOLUTION.choose(call, self.backend).name != "folded":
            return None
        return deployed_layers(fc, self._kernels(fc.weight), self.head_dim)

    def _may_take_map(self) -> bool:
        return self.one_map and self.shift != "tensor" and self.backend == "auto"

    def _layers(self) -> list[nn.Module]:
        return [layer for layer in (self.fc, self.dep_conv) if layer is not None]

    def _is_readable(self) -> bool:
        """Whether the weights of ``fc`` and ``dep_conv`` say all that calls of them compute."""
        conv = self.dep_conv
        known = conv is None or (type(conv) in (nn.Conv2d, ShiftConv2d) and is_bare(conv))
        return known and is_pointwise(self.fc)

    def _kernels(self, like: Tensor) -> Tensor:
        """Return those of the group convolution (C, K^2, K, K), like a map in type and device."""
        if self.dep_conv is not None:
            return self.dep_conv.weight
        return shift_kernels(self.kernel_size, self.out_chans, device=like.device, dtype=like.dtype)

    def _call_layers(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Call ``fc``, with the channels as images, and ``dep_conv``."""
        assert self.fc is not None
        groups = [x.unflatten(1, (-1, self.head_dim)) for x in (q, k, v)]
        stacked = torch.cat(groups, dim=1).transpose(1, 2)  # (B, d, J, H, W)
        maps = self.fc(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2]).flatten(1, 2)
        if self.dep_conv is not None:
            return self.dep_conv(maps)
        padding = self.dilation * (self.kernel_size // 2)
        sizes = (self.stride, padding, self.dilation)
        return F.conv2d(maps, self._kernels(maps), None, *sizes, groups=self.head_dim)
