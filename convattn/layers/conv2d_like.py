"""What an operator that stands in for a convolution takes from it: sizes, device, type."""

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
    """The sizes that a convolution and an operator in its place have in common."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    dilation: int

    @property
    def padding(self) -> int:
        """What `nn.Conv2d` is given to make maps of the operator's size."""
        return self.dilation * (self.kernel_size // 2)


class Conv2dLike(OneNode):
    """What `ACmix`, `XVolution` and `GLMix` share: each can be made from a convolution."""

    if TYPE_CHECKING:
        in_chans: int
        out_chans: int

    @property
    def in_channels(self) -> int:
        """Channels of the input, under `nn.Conv2d`'s name: networks ask for it."""
        return self.in_chans

    @property
    def out_channels(self) -> int:
        """Channels of the output, under `nn.Conv2d`'s name."""
        return self.out_chans

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """Make the operator that fits in the place of a convolution, with new weights.

        Args:
            conv: gives channels, kernel, stride, dilation, device, type, memory format and mode.
                The map that comes out is as large as the convolution's.
            **options: keyword arguments of the constructor, without those sizes, except
                ``kernel_size``. Where the channels are no multiple of the default number of heads,
                the largest smaller number that divides them is taken.

        Raises:
            TypeError: something other than a convolution, or an unknown option.
            ValueError: a convolution that the operator cannot stand in for; the message says why.
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
        """Add to the options of the constructor what follows from the convolution's sizes."""
        return {"kernel_size": size.kernel_size, **options}


def conv2d_size(conv: nn.Conv2d) -> ConvSize:
    """Return the sizes of a convolution; raise where no operator can stand in for it.

    An operator mixes all channels, has one odd kernel, stride and dilation for both axes, and gives
    maps of ceil(H / s) x ceil(W / s).
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
            f"an operator has its own borders: padding_mode must be 'zeros', "
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
    """Names that a constructor takes beside the sizes, its bases' where it passes names on."""
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
    """Give a layer the device, type, memory format and mode of a convolution."""
    weight = conv.weight
    layer = layer.to(device=weight.device, dtype=weight.dtype)
    last = weight.is_contiguous(memory_format=torch.channels_last)
    if last and not weight.is_contiguous():
        layer = layer.to(memory_format=torch.channels_last)
    return layer.train(conv.training)


def take_trained(
    layer: nn.Module, conv: nn.Module, state_dict: dict[str, Any], prefix: str
) -> None:
    """Let a layer that holds a convolution as ``conv`` load a state dict from before it was there.

    The entries of the convolution are renamed in ``state_dict``; one from after stays as it is.

    Args:
        layer: what has the convolution's name now.
        conv: the convolution.
        state_dict: of the whole network.
        prefix: of the layer's names, with the dot.
    """
    if any(name.startswith(f"{prefix}conv.") for name in state_dict):
        return
    ours = {*layer._parameters, *layer._buffers, *layer._modules}
    theirs = {"weight", "bias", *conv._parameters, *conv._buffers, *conv._modules} - ours
    rest = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
    old = [name for name in rest if name.partition(".")[0] in theirs]
    for name in old:
        state_dict[f"{prefix}conv.{name}"] = state_dict.pop(prefix + name)
    if old:  # torch does not tell whether the loading is strict
        warnings.warn(
            "the state dict is one of the network before convattn.replace(..., keep=True): the "
            "convolutions take their weights from it, what is new beside them stays as it is. "
            "strict=True does not allow that: use strict=False, or load before replace",
            stacklevel=2,
        )


def within_range(x: Tensor) -> Tensor:
    """Make what float16 could not hold finite, so that a factor of zero still makes it zero."""
    return torch.nan_to_num(x) if x.dtype == torch.float16 else x


def _square(name: str, sides: tuple[int, ...]) -> int:
    if sides[0] != sides[1]:
        raise ValueError(f"an operator is square: {name} must be one number, got {tuple(sides)}")
    return sides[0]


def _check_padding(conv: nn.Conv2d, size: ConvSize) -> None:
    if conv.padding == "same":  # which torch takes without a stride alone
        return
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    if padding != (size.padding, size.padding):
        raise ValueError(
            f"an operator gives maps of ceil(H / stride): padding must be {size.padding} for "
            f"kernel_size={size.kernel_size} and dilation={size.dilation}, got {conv.padding}"
        )


@torch.no_grad()
def _check_output(conv: nn.Conv2d, size: ConvSize) -> None:
    """Ask a convolution that computes in its own way, like timm's Conv2dSame, what it gives."""
    # A weight that a hook computes, as weight norm does, is an attribute, and cannot be copied.
    computed = {id(t): t.to("meta") for t in vars(conv).values() if isinstance(t, Tensor)}
    probe = copy.deepcopy(conv, computed).to("meta")
    for side in (size.kernel_size + size.dilation * size.kernel_size, 64, 65):
        x = torch.empty(1, size.in_channels, side, side, device="meta", dtype=probe.weight.dtype)
        given, wanted = type(conv).forward(probe, x).shape[-1], math.ceil(side / size.stride)
        if given != wanted:
            raise ValueError(
                f"an operator gives maps of ceil(H / stride): {side} pixels become {wanted}, but "
                f"{given} in {type(conv).__name__}"
            )
