"""Folding at deployment: layers take over, in place, what would follow them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.ops import fuse


@torch.no_grad()
def fold_scale(layer: nn.Module, scale: Tensor) -> None:
    """Multiply the outputs of a convolution or a linear layer: ``scale`` is (C,) or (1,)."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.copy_(fuse.scale_outputs(layer.weight, scale))
    if layer.bias is not None:
        layer.bias.copy_(fuse.scale_outputs(layer.bias, scale))


@torch.no_grad()
def fold_shift(conv: nn.Conv2d, shift: Tensor) -> None:
    """Add ``shift`` (C,) to the outputs of a convolution, which gets a bias if it has none."""
    if conv.bias is None:
        grad = conv.weight.requires_grad
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=grad)
    else:
        conv.bias.copy_(fuse.widened(conv.bias) + shift)


@torch.no_grad()
def fold_identity(conv: nn.Conv2d) -> None:
    """Add the input of a depth-wise convolution to its output."""
    conv.weight.copy_(fuse.add_identity(conv.weight))


@torch.no_grad()
def norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of a batch norm; None for what is none, or counts on its batch."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return None
    return fuse.batch_norm_factors(
        norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
