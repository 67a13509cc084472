"""Folding at deployment: layers take over, in place, what would come before or after them.

Nothing is folded into or out of a layer that `convattn.layers.foldable` refuses. Weights are
replaced, not written to: a parameter that two layers share is folded in one of them.
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

_WITH_ACT = (BatchNormAct2d, FrozenBatchNormAct2d)  # timm's: in evaluation a norm, then ``act``
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
    """Add to a convolution's outputs those of another one of the same map and sizes."""
    _set(layer, "weight", fuse.widened(layer.weight) + other.weight)
    if other.bias is not None:
        fold_shift(layer, other.bias)


@torch.no_grad()
def fold_identity(conv: nn.Module) -> bool:
    """Add the input of a depth-wise convolution to its output; False where that cannot be."""
    if not may_fold(conv) or not isinstance(conv, nn.Conv2d):
        return False
    k, kept = conv.kernel_size[0], conv.dilation[0] * (conv.kernel_size[0] // 2)
    depthwise = conv.weight.shape == (conv.in_channels, 1, k, k) and k % 2 == 1
    if not depthwise or conv.stride != (1, 1) or conv.padding not in ((kept, kept), "same"):
        return False
    _set(conv, "weight", fuse.add_identity(conv.weight))
    return True


def fold_factor(layer: nn.Module, scale: Tensor) -> bool:
    """Multiply the outputs of a layer by ``scale`` (C,) for good; see `fold_norm`."""
    return may_fold(layer) and _absorb(layer, scale, None)


def may_scale(*layers: nn.Module) -> bool:
    """Whether layers are convolutions or linear layers that may be folded."""
    return may_fold(*layers) and all(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers)


def fold_affine(layer: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Make the outputs of a convolution or a linear layer ``scale * y + shift``; see `fold_norm`.

    Args:
        layer: what computes y.
        scale: (C,).
        shift: (C,).
    """
    if not may_scale(layer):
        return False
    fold_scale(layer, scale)
    fold_shift(layer, shift)
    return True


def fold_norm(layer: nn.Module, norm: nn.Module) -> bool:
    """Fold the batch norm that follows a layer into it, exactly and for good, as in evaluation.

    The caller puts what `left_of` the norm in its place: an identity, or an activation.

    Args:
        layer: a convolution, a linear layer, or a module with ``absorb_affine(scale, shift)``,
            which makes its outputs ``scale * y + shift`` (both (C,)) and returns whether it could.
        norm: the only layer that follows.

    Returns:
        Whether the norm is folded. If not, nothing is done: ``norm`` is no batch norm or uses
        statistics of its batch, or one of the two may not be folded (`why_not_folded`).
    """
    if not _stands_for_norm(norm) or not may_fold(layer, norm) or not has_statistics(norm):
        return False
    drop = getattr(norm, "drop", None)  # of timm's norms with an activation
    if isinstance(drop, nn.Module) and not may_reach_into(drop):
        return False
    return _absorb(layer, *norm_factors(norm))


@torch.no_grad()
def fold_norm_before(norm: nn.Module, layer: nn.Module) -> bool:
    """Fold the batch norm before a layer into it; see `fold_norm`.

    A convolution must not pad: the norm does not see the zeros around its map.
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
    """Return what is left of a norm that is folded: its activation, or an identity."""
    return norm.get_submodule("act") if isinstance(norm, _WITH_ACT) else nn.Identity()


def fold_pair(parent: nn.Module, layer: str, norm: str) -> bool:
    """Fold one submodule into the one that it follows in ``parent``, by name, if it can be."""
    after = parent.get_submodule(norm)
    if not _stands_for_norm(after) or not may_fold_inside(parent, after):
        return False
    folded = fold_norm(parent.get_submodule(layer), after)
    if folded:
        setattr(parent, norm, left_of(after))
    return folded


def fold_sequence(modules: nn.Module) -> None:
    """Fold each batch norm of a sequence into the layer before it, or else the layer after it.

    What is no ``nn.Sequential``, such as an adapter around one, stays as it is.
    """
    if not isinstance(modules, nn.Sequential):
        if any(map(has_statistics, modules.modules())):
            may_fold_inside(modules)  # which notes the reason
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
    """Whether a module is a batch norm that uses running statistics in evaluation."""
    like: Any = norm  # one of several classes that agree in their names
    if not isinstance(norm, NORMS) or like.running_mean is None or like.running_var is None:
        return False
    return not is_lazy(like.running_mean)


def _stands_for_norm(module: nn.Module) -> bool:
    """Whether a module is a norm that `has_statistics`, or holds one, as an adapter does."""
    return has_statistics(module) or any(map(has_statistics, module.children()))


@torch.no_grad()
def norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm that `has_statistics`."""
    like: Any = norm
    return fuse.batch_norm_factors(
        like.running_mean, like.running_var, like.weight, like.bias, eps=like.eps
    )


def _absorb(layer: nn.Module, scale: Tensor, shift: Tensor | None) -> bool:
    """Make the outputs of a layer that may be folded ``scale * y + shift``."""
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
    """A batch norm in evaluation that no layer takes over: ``y = scale * x + shift``.

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
    """Return what a batch norm computes in evaluation; None for others, or if it may not fold."""
    if not _stands_for_norm(norm) or isinstance(norm, _WITH_ACT) or not may_fold(norm):
        return None
    if not has_statistics(norm):
        return None
    factors = norm_factors(norm)
    like = norm.running_mean if norm.weight is None else norm.weight
    assert isinstance(like, Tensor)
    return ChannelAffine(*(factor.detach().to(like.dtype) for factor in factors))
