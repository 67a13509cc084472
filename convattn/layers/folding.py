"""Fold norms, factors and shifts into the weights of a neighbouring layer, in place.

A layer that `convattn.layers.foldable` excludes is not changed. A parameter is replaced, not
overwritten: if two layers share a parameter, folding changes it in one of them only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torchvision.ops import FrozenBatchNorm2d

from convattn.layers.foldable import may_fold, may_fold_inside, may_reach_into
from convattn.ops import fuse

_WITH_ACT = (BatchNormAct2d, FrozenBatchNormAct2d)  # of timm: a norm, then ``act``
NORMS = (_BatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)


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
def add_layer(layer: nn.Conv2d, other: nn.Conv2d) -> None:
    """Add to a convolution another convolution of the same input and the same sizes."""
    _set(layer, "weight", fuse.widened(layer.weight) + other.weight)
    if other.bias is not None:
        fold_shift(layer, other.bias)


@torch.no_grad()
def fold_identity(conv: nn.Module) -> bool:
    """Fold ``x + DW(x)`` into the depth-wise convolution; return False if impossible."""
    if not may_fold(conv) or not isinstance(conv, nn.Conv2d):
        return False
    k, kept = conv.kernel_size[0], conv.dilation[0] * (conv.kernel_size[0] // 2)
    depthwise = conv.weight.shape == (conv.in_channels, 1, k, k) and k % 2 == 1
    if not depthwise or conv.stride != (1, 1) or conv.padding not in ((kept, kept), "same"):
        return False
    _set(conv, "weight", fuse.add_identity(conv.weight))
    return True


def fold_factor(layer: nn.Module, scale: Tensor) -> bool:
    """Multiply the outputs of a layer by ``scale`` (C,) permanently; see `fold_norm`."""
    return may_fold(layer) and _absorb(layer, scale, None)


def may_scale(*layers: nn.Module) -> bool:
    """Return whether layers are convolutions or linear layers that may be folded."""
    return may_fold(*layers) and all(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers)


def fold_affine(layer: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Replace the outputs y of a layer by ``scale * y + shift``; False if impossible.

    Args:
        layer: a convolution or a linear layer.
        scale: (C,).
        shift: (C,).
    """
    if not may_scale(layer):
        return False
    fold_scale(layer, scale)
    fold_shift(layer, shift)
    return True


def fold_norm(layer: nn.Module, norm: nn.Module) -> bool:
    """Fold a batch norm in evaluation mode into the layer before it, exactly and permanently.

    The caller replaces the norm by `left_of` the norm: an identity, or an activation.

    Args:
        layer: a convolution, a linear layer, or a module with ``absorb_affine(scale, shift)``,
            which replaces its outputs y by ``scale * y + shift`` (both (C,)) and returns whether
            this was possible.
        norm: the only layer that reads the output of ``layer``.

    Returns:
        Whether the norm is folded. If not, nothing is changed: ``norm`` is not a batch norm or has
        no running statistics, or one of the two may not be folded (`why_not_folded`).
    """
    if not _stands_for_norm(norm) or not may_fold(layer, norm) or not has_statistics(norm):
        return False
    drop = getattr(norm, "drop", None)  # timm's norms with an activation have it
    if isinstance(drop, nn.Module) and not may_reach_into(drop):
        return False
    return _absorb(layer, *norm_factors(norm))


@torch.no_grad()
def fold_norm_before(norm: nn.Module, layer: nn.Module) -> bool:
    """Fold the batch norm before a layer into it; see `fold_norm`.

    The convolution must not pad: the norm does not change the zeros of the padding.
    """
    if not has_statistics(norm) or isinstance(norm, _WITH_ACT):
        return False
    if not isinstance(layer, nn.Conv2d | nn.Linear) or is_lazy(layer.weight):
        return False
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), "valid"):
        return False
    if not may_fold(layer, norm):
        return False
    scale, shift = norm_factors(norm)
    if layer.weight.shape[1] * groups != scale.shape[0]:
        return False
    weight, bias = fuse.affine_before(layer.weight, layer.bias, scale, shift, groups=groups)
    _set(layer, "weight", weight)
    _set(layer, "bias", bias)
    return True


def left_of(norm: nn.Module) -> nn.Module:
    """Return the module that replaces a folded norm: its activation, or an identity."""
    return norm.get_submodule("act") if isinstance(norm, _WITH_ACT) else nn.Identity()


def fold_pair(parent: nn.Module, layer: str, norm: str) -> bool:
    """Fold a norm of ``parent`` into the submodule before it, both by name, if possible."""
    after = parent.get_submodule(norm)
    if not _stands_for_norm(after) or not may_fold_inside(parent, after):
        return False
    folded = fold_norm(parent.get_submodule(layer), after)
    if folded:
        setattr(parent, norm, left_of(after))
    return folded


def fold_sequence(modules: nn.Module) -> None:
    """Fold each batch norm of a sequence into the layer before it, or else the layer after it.

    A module that is no ``nn.Sequential``, such as an adapter around one, is left unchanged.
    """
    if not isinstance(modules, nn.Sequential):
        if any(map(has_statistics, modules.modules())):
            may_fold_inside(modules)  # records the reason
        return
    names = list(modules._modules)
    for before, after in pairwise(names):
        first, second = modules.get_submodule(before), modules.get_submodule(after)
        norm = second if _stands_for_norm(second) else first
        if not _stands_for_norm(norm) or not may_fold_inside(modules, norm):
            continue
        if fold_norm(first, second):
            setattr(modules, after, left_of(second))
        elif fold_norm_before(first, second):
            setattr(modules, before, nn.Identity())


def has_statistics(norm: nn.Module) -> bool:
    """Return whether a module is a batch norm that uses running statistics in evaluation."""
    like: Any = norm  # several classes with the same attributes
    if not isinstance(norm, NORMS) or like.running_mean is None or like.running_var is None:
        return False
    return not is_lazy(like.running_mean)


def _stands_for_norm(module: nn.Module) -> bool:
    """Return whether a module is, or contains, a norm that `has_statistics`."""
    return has_statistics(module) or any(map(has_statistics, module.children()))


@torch.no_grad()
def norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm that `has_statistics`."""
    like: Any = norm
    return fuse.batch_norm_factors(
        like.running_mean, like.running_var, like.weight, like.bias, eps=like.eps
    )


def _absorb(layer: nn.Module, scale: Tensor, shift: Tensor | None) -> bool:
    """Replace the outputs y of a layer by ``scale * y + shift``, if it may be folded."""
    absorb = getattr(layer, "absorb_affine", None)
    if absorb is not None:
        return bool(absorb(scale, torch.zeros_like(scale) if shift is None else shift))
    if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.weight.shape[0] != scale.shape[0]:
        return False
    fold_scale(layer, scale)
    if shift is not None:
        fold_shift(layer, shift)
    return True


def _set(layer: nn.Conv2d | nn.Linear, name: str, value: Tensor) -> None:
    grad = layer.weight.requires_grad
    setattr(layer, name, nn.Parameter(value.to(layer.weight.dtype), requires_grad=grad))


class ChannelAffine(nn.Module):
    """The deployed form of a batch norm that is not folded: ``y = scale * x + shift``.

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
    """Return a batch norm as a `ChannelAffine`; None for other modules, or if not foldable."""
    if not _stands_for_norm(norm) or isinstance(norm, _WITH_ACT) or not may_fold(norm):
        return None
    if not has_statistics(norm):
        return None
    factors = norm_factors(norm)
    like = norm.running_mean if norm.weight is None else norm.weight
    assert isinstance(like, Tensor)
    return ChannelAffine(*(factor.detach().to(like.dtype) for factor in factors))
