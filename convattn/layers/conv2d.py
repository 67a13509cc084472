"""The operators under the arguments of `nn.Conv2d`, and a convolution with one beside it."""

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

torch.fx.wrap("within_range")  # it looks at the type: torch.fx takes it as one node


class _Conv2dArguments(Conv2dLike):
    """Takes exactly the arguments of `nn.Conv2d`, then the operator's own by name."""

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
            padding_mode,  # type: ignore[arg-type]  # torch names the four; it checks them too
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
        """Make the operator that fits in the place of a convolution; see `ACmix.from_conv2d`."""
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
    """`ACmix` where a network makes an `nn.Conv2d`: same arguments, same size of the output.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the convolution path, odd and square.
        stride: of both paths, one number for both axes.
        padding: what keeps the map: ``dilation * (kernel_size // 2)``, or "same" without a stride.
        dilation: of both paths.
        groups: 1; an operator mixes all channels.
        bias: taken and not used: the projections have biases, as in the published networks, whose
            ACmix replaces convolutions without one.
        padding_mode: "zeros".
        device: where to make it.
        dtype: its type.
        **options: keyword arguments of `ACmix`; without ``num_heads`` the largest number up to 4
            that divides the channels.

    Raises:
        TypeError: an unknown option.
        ValueError: what ACmix cannot do in place of a convolution; the message says what would.
    """


class XVolutionConv2d(_Conv2dArguments, XVolution):
    """`XVolution` where a network makes an `nn.Conv2d`: same arguments, same size of the output.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of both branches, odd and square.
        stride: of both branches, one number for both axes.
        padding: what keeps the map: ``dilation * (kernel_size // 2)``, or "same" without a stride.
        dilation: of the convolution, and the distance of the displacements.
        groups: 1; an operator mixes all channels.
        bias: taken and not used: both branches end in a batch norm, which has one.
        padding_mode: "zeros".
        device: where to make it.
        dtype: its type.
        **options: keyword arguments of `XVolution`; without ``num_heads`` the largest number up to
            4 that divides the channels.

    Raises:
        TypeError: an unknown option.
        ValueError: what X-volution cannot do in place of a convolution; the message says what
            would.
    """


class GLMixConv2d(_Conv2dArguments, GLMix):
    """`GLMix` where a network makes an `nn.Conv2d`: same arguments, same size of the output.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the local branch, odd and square.
        stride: of the output, one number for both axes.
        padding: what keeps the map: ``dilation * (kernel_size // 2)``, or "same" without a stride.
        dilation: of the local branch.
        groups: 1; an operator mixes all channels.
        bias: taken and not used: the last layer of each branch has one, as published.
        padding_mode: "zeros".
        device: where to make it.
        dtype: its type.
        **options: keyword arguments of `GLMix`.

    Raises:
        TypeError: an unknown option.
        ValueError: what GLMix cannot do in place of a convolution; the message says what would.
    """


class ConvBeside(nn.Module):
    """A trained convolution and an operator beside it, which at first adds nothing.

    ``y = conv(x) + gamma * op(x)``, with a learnt gamma of shape (C,) that starts at zero

    A state dict in which the convolution stands under this layer's name is loaded into ``conv``.

    Args:
        conv: stays as it is, weights and all.
        op: maps (B, C_in, H, W) to what ``conv`` gives: (B, C, H', W').
    """

    def __init__(self, conv: nn.Conv2d, op: nn.Module) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.conv: Any = conv  # None where ``op`` has taken it over
        self.op = op
        weight = conv.weight
        self.gamma: Any = nn.Parameter(
            torch.zeros(conv.out_channels, device=weight.device, dtype=weight.dtype)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to what the convolution gives."""
        if self.conv is None:
            return self.op(x)
        y, beside = self.conv(x), within_range(self.op(x))
        if self.gamma is not None:
            beside = self.gamma[:, None, None] * beside
        # Under autocast gamma, kept in float32, would widen everything that follows.
        return y + beside.to(y.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if self.conv is not None and self.gamma is not None:  # else it is the deployed form
            take_trained(self, self.conv, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def reparameterize(self) -> None:
        """Fold gamma into the operator, and the convolution into X-volution's, exactly.

        What may not be folded stays as it is.
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
        """Make the outputs ``scale * y + shift`` for good, exactly; False if not possible."""
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
    """Return whether the sum of two convolutions of one map is a convolution."""
    names = ("kernel_size", "stride", "dilation", "groups", "padding", "padding_mode")
    return all(getattr(conv, name) == getattr(other, name) for name in names)
