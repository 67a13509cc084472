"""How the weights of transformer-like backbones start."""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import nn

from convattn.layers.acmix.acmix import ACmix


def start_transformer(model: nn.Module) -> None:
    """Start linear layers and 1x1 convolutions at a narrow normal, their biases at zero.

    Other convolutions, and the convolution path of ACmix, start as they do alone.
    """
    model.apply(start_linear)
    for module in model.modules():
        if isinstance(module, ACmix):
            if module.fc is not None:
                module.fc.reset_parameters()
            module.reset_parameters()


def start_linear(module: nn.Module) -> None:
    """Start the module at a narrow normal if it is a linear layer or a 1x1 convolution."""
    # On the meta device there is nothing to fill, and not filling it is quick.
    if not isinstance(module, nn.Linear | nn.Conv2d) or module.weight.is_meta:
        return
    if isinstance(module, nn.Linear) or module.kernel_size == (1, 1):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
