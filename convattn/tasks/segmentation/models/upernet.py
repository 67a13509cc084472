"""The head of UperNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convattn.ops.resampling.bins import average_bins
from convattn.tasks.segmentation.models.parts import classifier, conv_norm_act, resize_like


class UperNetHead(nn.Module):
    """Pyramid pooling of the last map, a feature pyramid, and the fusion of all levels.

    UperNet (ECCV 2018, arXiv 1807.10221) in the configuration of Swin (ICCV 2021). Every
    convolution but the classifier has a batch norm and a ReLU.

    Args:
        in_channels: channels of the maps, the largest map first.
        num_classes: number of classes.
        channels: channels of all levels.
        pool_scales: rows, and columns, of the grids of the pyramid pooling.
        dropout: rate of dropout of whole channels before the classifier.

    Shape:
        maps (B, in_channels[i], H_i, W_i) to (B, num_classes, H_0, W_0).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *before, last = in_channels
        self.pyramid_pooling = PyramidPooling(last, channels, pool_scales)
        self.laterals = nn.ModuleList(conv_norm_act(width, channels, 1) for width in before)
        self.convs = nn.ModuleList(conv_norm_act(channels, channels, 3) for _ in before)
        self.fusion = conv_norm_act(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits at the resolution of the first map."""
        *before, last = maps
        top = self.pyramid_pooling(last)
        levels = [lateral(x) for lateral, x in zip(self.laterals, before, strict=True)]
        above = top
        for number in reversed(range(len(levels))):
            above = levels[number] = levels[number] + resize_like(above, levels[number])
        levels = [conv(x) for conv, x in zip(self.convs, levels, strict=True)]
        fused = torch.cat([resize_like(x, maps[0]) for x in (*levels, top)], 1)
        logits: Tensor = self.classifier(self.dropout(self.fusion(fused)))
        return logits


class PyramidPooling(nn.Module):
    """The pyramid pooling module of PSPNet (CVPR 2017, arXiv 1612.01105).

    ``y = conv3x3([x, up(conv1x1(pool_s(x))) for each scale s])``. A map is pooled by a product with
    a matrix along each axis where it is trained or exported, see
    `convattn.ops.resampling.bins.average_bins`.

    Args:
        in_channels: channels of the map.
        channels: channels of each branch and of the result.
        scales: rows, and columns, of the grids.

    Shape:
        (B, in_channels, H, W) to (B, channels, H, W).
    """

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.branches = nn.ModuleList(conv_norm_act(in_channels, channels, 1) for _ in scales)
        self.fusion = conv_norm_act(in_channels + len(self.scales) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fused map."""
        parts = [x]
        for scale, branch in zip(self.scales, self.branches, strict=True):
            pooled = average_bins(x, (scale, scale)).transpose(1, 2).unflatten(2, (scale, scale))
            parts.append(resize_like(branch(pooled), x))
        fused: Tensor = self.fusion(torch.cat(parts, 1))
        return fused
