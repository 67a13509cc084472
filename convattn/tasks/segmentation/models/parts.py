"""Layers that several segmentation heads share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


def conv_norm_act(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution without bias that keeps the resolution, a batch norm and a ReLU."""
    layers = Conv2dNormActivation(in_channels, channels, kernel_size)
    nn.init.kaiming_normal_(layers[0].weight, mode="fan_out", nonlinearity="relu")
    return layers


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Return the 1x1 convolution that computes the logits of each position."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has a bias
    return layer


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map to the height and width of another map, bilinearly, without aligned corners."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
