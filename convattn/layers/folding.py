"""Folding at deployment: layers take over, in place, what would come before or after them.

Weights are replaced, not written to: a parameter that two layers share is folded in one of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeGuard

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

from convattn.ops import fuse

_WITH_ACT = (BatchNormAct2d, FrozenBatchNormAct2d)  # timm's: in evaluation a norm, then ``act``


@torch.no_grad()
def fold_scale(layer: nn.Module, scale: Tensor) -> None:
    """Multiply the outputs of a convolution or a linear layer: ``scale`` is (C,) or (1,)."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    _set(layer, "weight", fuse.scale_outputs(layer.weight, scale))
    if layer.bias is not None:
        _set(layer, "bias", fuse.scale_outputs(layer.bias, scale))


@torch.no_grad()
def fold_shift(layer: nn.Module, shift: Tensor) -> None:
    """Add ``shift`` (C,) to the outputs of a convolution or a linear layer, in its bias."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    _set(layer, "bias", shift if layer.bias is None else fuse.widened(layer.bias) + shift)


@torch.no_grad()
def fold_identity(conv: nn.Conv2d) -> None:
    """Add the input of a depth-wise convolution to its output."""
    _set(conv, "weight", fuse.add_identity(conv.weight))


@torch.no_grad()
def add_layer(layer: nn.Conv2d, other: nn.Conv2d) -> None:
    """Add to a convolution's outputs those of another one of the same map and sizes."""
    _set(layer, "weight", fuse.widened(layer.weight) + other.weight)
    if other.bias is not None:
        fold_shift(layer, other.bias)


def fold_norm(layer: nn.Module, norm: nn.Module) -> bool:
    """Fold the batch norm that follows a layer into it, exactly and for good, as in evaluation.

    The caller puts what `left_of` the norm in its place: an identity, or an activation.

    Args:
        layer: a convolution, a linear layer, or a module with ``absorb_affine(scale, shift)``,
            which makes its outputs ``scale * y + shift`` (both (C,)) and returns whether it could.
        norm: what follows it, and nothing else does.

    Returns:
        Whether it is. If not, nothing is done: ``norm`` is no batch norm or counts on its
        batch, the layer computes in its own way, or a hook looks between the two.
    """
    factors = _factors(norm) if isinstance(norm, _WITH_ACT) else norm_factors(norm)
    if factors is None or _is_watched(layer):
        return False
    absorb = getattr(layer, "absorb_affine", None)
    if absorb is not None:
        return bool(absorb(*factors))
    if not is_plain(layer) or layer.weight.shape[0] != factors[0].shape[0]:
        return False
    fold_scale(layer, factors[0])
    fold_shift(layer, factors[1])
    return True


@torch.no_grad()
def fold_norm_before(norm: nn.Module, layer: nn.Module) -> bool:
    """Fold the batch norm before a layer into it; see `fold_norm`.

    A convolution must pad nothing: the norm would not see the zeros around its map.
    """
    factors = norm_factors(norm)
    if factors is None or _is_watched(layer) or not is_plain(layer):
        return False
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), "valid"):
        return False
    if layer.weight.shape[1] * groups != factors[0].shape[0]:
        return False
    weight, bias = fuse.affine_before(layer.weight, layer.bias, *factors, groups=groups)
    _set(layer, "weight", weight)
    _set(layer, "bias", bias)
    return True


def left_of(norm: nn.Module) -> nn.Module:
    """Return what is left of a norm that is folded: its activation, or an identity."""
    return norm.get_submodule("act") if isinstance(norm, _WITH_ACT) else nn.Identity()


def fold_pair(parent: nn.Module, layer: str, norm: str) -> bool:
    """Fold one submodule into the one that it follows, by name, if it can be."""
    after = parent.get_submodule(norm)
    folded = fold_norm(parent.get_submodule(layer), after)
    if folded:
        setattr(parent, norm, left_of(after))
    return folded


def fold_sequence(modules: nn.Module) -> None:
    """Fold each batch norm of a sequence into the layer before it, or else the layer after it."""
    names = list(modules._modules)
    for before, after in pairwise(names):
        first, second = modules.get_submodule(before), modules.get_submodule(after)
        if not fold_pair(modules, before, after) and fold_norm_before(first, second):
            setattr(modules, before, nn.Identity())


def norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of a batch norm; None for what is none, or counts on its batch."""
    if isinstance(norm, _BatchNorm):
        # What derives from a batch norm may do more, such as timm's BatchNormAct2d.
        plain = type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    else:
        plain = type(norm) is FrozenBatchNorm2d
    return _factors(norm) if plain else None


@torch.no_grad()
def _factors(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    if _is_watched(norm) or is_parametrized(norm):
        return None
    like: Any = norm  # one of several classes that agree in their names
    mean, variance = like.running_mean, like.running_var
    if mean is None or variance is None or is_lazy(mean):
        return None
    return fuse.batch_norm_factors(mean, variance, like.weight, like.bias, eps=like.eps)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Return whether a layer's outputs are its weight times the inputs, and its bias."""
    if not isinstance(layer, nn.Conv2d | nn.Linear) or is_parametrized(layer):
        return False
    if is_lazy(layer.weight):
        return False
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    own = type(layer).forward, type(layer)._conv_forward
    return own == (nn.Conv2d.forward, nn.Conv2d._conv_forward)


def _is_watched(module: nn.Module) -> bool:
    """Return whether somebody sees, or changes, what goes in or comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _set(layer: nn.Conv2d | nn.Linear, name: str, value: Tensor) -> None:
    grad = layer.weight.requires_grad
    setattr(layer, name, nn.Parameter(value.to(layer.weight.dtype), requires_grad=grad))


class ChannelAffine(nn.Module):
    """A batch norm in evaluation where no layer takes it over: ``y = scale * x + shift``.

    Args:
        scale: (C,).
        shift: (C,).
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(shift, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and dtype."""
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def channel_affine(norm: nn.Module) -> ChannelAffine | None:
    """Return what a batch norm does in evaluation; None for what is none, or is watched."""
    factors = norm_factors(norm)
    if factors is None:
        return None
    like = norm.running_mean if norm.weight is None else norm.weight
    assert isinstance(like, Tensor)
    return ChannelAffine(*(factor.detach().to(like.dtype) for factor in factors))
