"""Build an operator that replaces a convolution, with its sizes, device, dtype and mode."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convattn.checks import check_odd
from convattn.layers.one_node import OneNode

Module = TypeVar("Module", bound=nn.Module)

_OF_THE_CONVOLUTION = (
    *("in_chans", "out_chans", "in_channels", "out_channels"),
    *("stride", "padding", "dilation", "groups", "padding_mode", "device", "dtype"),
)


@dataclass(frozen=True)
class ConvSize:
    """The sizes of a convolution that the operator replacing it must also have."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    dilation: int

    @property
    def padding(self) -> int:
        """The padding with which `nn.Conv2d` has the operator's output size."""
        return self.dilation * (self.kernel_size // 2)


class Conv2dLike(OneNode):
    """The base class of `ACmix`, `XVolution` and `GLMix`: they can replace a convolution."""

    if TYPE_CHECKING:
        in_chans: int
        out_chans: int

    @property
    def in_channels(self) -> int:
        """Channels of the input, by the name of `nn.Conv2d`, which networks read."""
        return self.in_chans

    @property
    def out_channels(self) -> int:
        """Channels of the output, by the name of `nn.Conv2d`."""
        return self.out_chans

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """Build an operator that can replace a convolution, with new weights.

        Args:
            conv: the convolution. The operator has its channels, kernel size, stride, dilation,
                device, dtype, memory format, mode and output size.
            **options: keyword arguments of the constructor, except these sizes; ``kernel_size`` is
                possible. If the default number of heads does not divide the channels, the largest
                smaller divisor is used.

        Raises:
            TypeError: ``conv`` is not a convolution, or an option is unknown.
            ValueError: the operator cannot replace this convolution; the message names the reason.
        """
        cls.check_options(options)
        size = conv2d_size(conv)
        with torch.device(conv.weight.device):
            layer = cls(
                size.in_channels,
                size.out_channels,
                stride=size.stride,
                dilation=size.dilation,
                **cls._fitting(size, options),
            )
        return follow(conv, layer)

    @classmethod
    def check_options(cls, options: Iterable[str]) -> None:
        """Raise a TypeError unless each name is one of the options of `from_conv2d`."""
        known = _keywords(cls)
        for name in options:
            if name in _OF_THE_CONVOLUTION:
                raise TypeError(
                    f"{cls.__name__} takes no option {name!r}: it is that of the convolution"
                )
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise TypeError(
                    f"{cls.__name__} takes no option {name!r}{hint} "
                    f"Known: {', '.join(map(repr, known))}"
                )

    @classmethod
    def _fitting(cls, size: ConvSize, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options, with defaults that follow from the convolution's sizes."""
        return {"kernel_size": size.kernel_size, **options}


def conv2d_size(conv: nn.Conv2d) -> ConvSize:
    """Return the sizes of a convolution; raise if no operator can replace it.

    An operator mixes all channels, has one odd kernel size, one stride and one dilation for both
    axes, and returns maps of ceil(H / s) x ceil(W / s).
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be an nn.Conv2d, got {type(conv).__name__}")
    if is_lazy(conv.weight):
        raise ValueError("the convolution has no channels yet: run the network once before")
    if conv.groups != 1:
        raise ValueError(
            f"an operator mixes all channels: groups must be 1, got groups={conv.groups} of "
            f"{conv.in_channels} channels; leave grouped and depth-wise convolutions out"
        )
    if conv.padding_mode != "zeros":
        raise ValueError(
            f"an operator does not support other padding: padding_mode must be 'zeros', "
            f"got {conv.padding_mode!r}"
        )
    size = ConvSize(
        conv.in_channels,
        conv.out_channels,
        _square("kernel_size", conv.kernel_size),
        _square("stride", conv.stride),
        _square("dilation", conv.dilation),
    )
    check_odd("kernel_size", size.kernel_size)
    if type(conv).forward is nn.Conv2d.forward:
        _check_padding(conv, size)
    else:
        _check_output(conv, size)
    return size


def _keywords(operator: type[Conv2dLike]) -> list[str]:
    """Return the keyword arguments of a constructor, those of its bases if it passes them on."""
    names: list[str] = []
    for kind in operator.__mro__[: operator.__mro__.index(Conv2dLike)]:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names += [p.name for p in named if p.name not in (*_OF_THE_CONVOLUTION, *names)]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names


def fewer_heads(channels: int, default: int) -> int:
    """Return the largest number of heads, up to ``default``, that divides the channels."""
    return max(n for n in range(1, max(1, default) + 1) if channels % n == 0)


def follow(conv: nn.Conv2d, layer: Module) -> Module:
    """Move a layer to the device, dtype, memory format and mode of a convolution."""
    weight = conv.weight
    layer = layer.to(device=weight.device, dtype=weight.dtype)
    last = weight.is_contiguous(memory_format=torch.channels_last)
    if last and not weight.is_contiguous():
        layer = layer.to(memory_format=torch.channels_last)
    return layer.train(conv.training)


def take_trained(
    layer: nn.Module, conv: nn.Module, state_dict: dict[str, Any], prefix: str
) -> None:
    """Prepare a state dict that was saved before a layer took the place of a convolution.

    The layer holds the convolution as ``conv``, so the entries of the convolution are renamed in
    ``state_dict``. A state dict that was saved later is not changed.

    Args:
        layer: the layer that has the convolution's name now.
        conv: the convolution in the layer.
        state_dict: the state dict of the whole network.
        prefix: the prefix of the layer's names, with the dot.
    """
    if any(name.startswith(f"{prefix}conv.") for name in state_dict):
        return
    ours = {*layer._parameters, *layer._buffers, *layer._modules}
    theirs = {"weight", "bias", *conv._parameters, *conv._buffers, *conv._modules} - ours
    rest = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
    old = [name for name in rest if name.partition(".")[0] in theirs]
    for name in old:
        state_dict[f"{prefix}conv.{name}"] = state_dict.pop(prefix + name)
    if old:  # this hook does not know whether loading is strict
        warnings.warn(
            "the state dict was saved before convattn.replace(..., keep=True): the convolutions "
            "load their weights from it, and the added operators keep their weights. strict=True "
            "does not allow missing weights: use strict=False, or load before replace",
            stacklevel=2,
        )


def within_range(x: Tensor) -> Tensor:
    """Replace inf and NaN in float16, so that a following factor of zero gives zero."""
    return torch.nan_to_num(x) if x.dtype == torch.float16 else x


def _square(name: str, sides: tuple[int, ...]) -> int:
    if sides[0] != sides[1]:
        raise ValueError(
            f"an operator has equal sizes along both axes: {name} must be one number, "
            f"got {tuple(sides)}"
        )
    return sides[0]


def _check_padding(conv: nn.Conv2d, size: ConvSize) -> None:
    if conv.padding == "same":  # torch supports "same" with stride 1 only
        return
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    if padding != (size.padding, size.padding):
        raise ValueError(
            f"an operator returns maps of ceil(H / stride): padding must be {size.padding} for "
            f"kernel_size={size.kernel_size} and dilation={size.dilation}, got {conv.padding}"
        )


@torch.no_grad()
def _check_output(conv: nn.Conv2d, size: ConvSize) -> None:
    """Check the output size of a convolution with its own ``forward``, like timm's Conv2dSame."""
    # A weight that a hook computes, such as weight norm, is an attribute that cannot be copied.
    computed = {id(t): t.to("meta") for t in vars(conv).values() if isinstance(t, Tensor)}
    probe = copy.deepcopy(conv, computed).to("meta")
    for side in (size.kernel_size + size.dilation * size.kernel_size, 64, 65):
        x = torch.empty(1, size.in_channels, side, side, device="meta", dtype=probe.weight.dtype)
        actual, expected = type(conv).forward(probe, x).shape[-1], math.ceil(side / size.stride)
        if actual != expected:
            raise ValueError(
                f"an operator returns maps of ceil(H / stride): {side} pixels become "
                f"{expected}, but {actual} in {type(conv).__name__}"
            )
