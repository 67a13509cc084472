"""Initial weights of transformer-like backbones."""

from __future__ import annotations

from typing import TypeGuard

from timm.layers import trunc_normal_
from torch import nn

from convattn.layers.acmix.acmix import ACmix


def start_narrow(model: nn.Module) -> None:
    """Initialize all linear layers and convolutions with a narrow normal, biases with zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _start(module)


def start_transformer(model: nn.Module) -> None:
    """Initialize linear layers and 1x1 convolutions with a narrow normal, biases with zero.

    Other convolutions keep the initialization of torch, the convolution path of ACmix its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) or _is_pointwise(module):
            _start(module)
    for module in model.modules():
        if isinstance(module, ACmix):
            if module.fc is not None:
                module.fc.reset_parameters()
            module.reset_parameters()


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def _start(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.weight.is_meta:  # a meta tensor has no values, and timm's function would still be slow
        return
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
