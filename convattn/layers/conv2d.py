"""The operators with the arguments of `nn.Conv2d`, and the sum of a convolution and an operator."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.fx
from torch import Tensor, nn

from convattn.layers.acmix.acmix import ACmix
from convattn.layers.conv2d_like import (
    Conv2dLike,
    conv2d_size,
    follow,
    take_trained,
    within_range,
)
from convattn.layers.foldable import may_fold, may_fold_inside
from convattn.layers.folding import add_layer, fold_factor, fold_scale, fold_shift, may_scale
from convattn.layers.glmix import GLMix
from convattn.layers.xvolution import XVolution

torch.fx.wrap("within_range")  # one node in torch.fx: it reads the dtype


class _Conv2dArguments(Conv2dLike):
    """Mixin: the arguments of `nn.Conv2d`, then keyword arguments of the operator."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        self.check_options(options)
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]  # torch checks the value
            device="meta",
        )
        size = conv2d_size(conv)
        with torch.device(torch.get_default_device() if device is None else device):
            super().__init__(
                in_channels,
                out_channels,
                stride=size.stride,
                dilation=size.dilation,
                **self._fitting(size, options),
            )
        self.to(dtype=dtype)

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """Build an operator that can replace a convolution; see `ACmix.from_conv2d`."""
        cls.check_options(options)
        size = conv2d_size(conv)
        kernel_size = options.pop("kernel_size", size.kernel_size)
        layer = cls(
            size.in_channels,
            size.out_channels,
            kernel_size,
            size.stride,
            size.dilation * (kernel_size // 2),
            size.dilation,
            device=conv.weight.device,
            **options,
        )
        return follow(conv, layer)


class ACmixConv2d(_Conv2dArguments, ACmix):
    """`ACmix` with the arguments and the output size of `nn.Conv2d`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the convolution path, odd and square.
        stride: of both paths, one number for both axes.
        padding: only ``dilation * (kernel_size // 2)``, or "same" with stride 1.
        dilation: of both paths.
        groups: 1; an operator mixes all channels.
        bias: ignored: the projections always have biases, as in the published networks, in which
            ACmix replaces convolutions without bias.
        padding_mode: "zeros".
        device: the device of the parameters.
        dtype: the dtype of the parameters.
        **options: keyword arguments of `ACmix`; without ``num_heads`` the largest number up to 4
            that divides the channels.

    Raises:
        TypeError: an unknown option.
        ValueError: ACmix does not support an argument; the message names supported values.
    """


class XVolutionConv2d(_Conv2dArguments, XVolution):
    """`XVolution` with the arguments and the output size of `nn.Conv2d`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of both branches, odd and square.
        stride: of both branches, one number for both axes.
        padding: only ``dilation * (kernel_size // 2)``, or "same" with stride 1.
        dilation: of the convolution, and the distance of the displacements.
        groups: 1; an operator mixes all channels.
        bias: ignored: both branches end in a batch norm, which has a bias.
        padding_mode: "zeros".
        device: the device of the parameters.
        dtype: the dtype of the parameters.
        **options: keyword arguments of `XVolution`; without ``num_heads`` the largest number up to
            4 that divides the channels.

    Raises:
        TypeError: an unknown option.
        ValueError: X-volution does not support an argument; the message names supported values.
    """


class GLMixConv2d(_Conv2dArguments, GLMix):
    """`GLMix` with the arguments and the output size of `nn.Conv2d`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the local branch, odd and square.
        stride: of the output, one number for both axes.
        padding: only ``dilation * (kernel_size // 2)``, or "same" with stride 1.
        dilation: of the local branch.
        groups: 1; an operator mixes all channels.
        bias: ignored: the last layer of each branch has a bias, as published.
        padding_mode: "zeros".
        device: the device of the parameters.
        dtype: the dtype of the parameters.
        **options: keyword arguments of `GLMix`.

    Raises:
        TypeError: an unknown option.
        ValueError: GLMix does not support an argument; the message names supported values.
    """


class ConvBeside(nn.Module):
    """The sum of a trained convolution and an operator, whose factor is initialized to zero.

    ``y = conv(x) + gamma * op(x)``, with a learnt gamma of shape (C,), initialized to zero

    A state dict that has the convolution under this layer's name is loaded into ``conv``.

    Args:
        conv: the trained convolution; it is not changed.
        op: maps (B, C_in, H, W) to the output shape of ``conv``: (B, C, H', W').
    """

    def __init__(self, conv: nn.Conv2d, op: nn.Module) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.conv: Any = conv  # None if it was folded into ``op``
        self.op = op
        weight = conv.weight
        self.gamma: Any = nn.Parameter(
            torch.zeros(conv.out_channels, device=weight.device, dtype=weight.dtype)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to the output shape of the convolution."""
        if self.conv is None:
            return self.op(x)
        y, added = self.conv(x), within_range(self.op(x))
        if self.gamma is not None:
            added = self.gamma[:, None, None] * added
        # Under autocast gamma is float32, and the sum would be float32 too.
        return y + added.to(y.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if self.conv is not None and self.gamma is not None:  # else deployed
            take_trained(self, self.conv, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def reparameterize(self) -> None:
        """Fold gamma into the operator, and ``conv`` into the convolution of X-volution, exactly.

        Layers that may not be folded stay unchanged.
        """
        if self.conv is None or not may_fold_inside(self):
            return
        if self.gamma is not None and self._absorb(self.gamma.detach()):
            self.gamma = None
        if self.gamma is not None or not isinstance(self.op, XVolution):
            return
        if (
            may_fold(self.op)
            and may_scale(self.op.conv, self.conv)
            and _are_alike(self.conv, self.op.conv)
        ):
            add_layer(self.op.conv, self.conv)
            self.conv = None

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Replace the outputs y by ``scale * y + shift``, exactly; return False if impossible."""
        self.reparameterize()
        if self.conv is None:
            assert isinstance(self.op, XVolution)
            return may_fold(self.op) and self.op.absorb_affine(scale, shift)
        if self.gamma is not None or not may_scale(self.conv) or not self._absorb(scale):
            return False
        fold_scale(self.conv, scale)
        fold_shift(self.conv, shift)
        return True

    def _absorb(self, scale: Tensor) -> bool:
        return hasattr(self.op, "absorb_affine") and fold_factor(self.op, scale)


def _are_alike(conv: nn.Conv2d, other: nn.Conv2d) -> bool:
    """Return whether the sum of two convolutions of one map is one convolution."""
    names = ("kernel_size", "stride", "dilation", "groups", "padding", "padding_mode")
    return all(getattr(conv, name) == getattr(other, name) for name in names)
