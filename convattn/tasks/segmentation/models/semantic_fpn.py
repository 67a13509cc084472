"""The head of Semantic FPN."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from convattn.tasks.segmentation.models.parts import classifier, conv_norm_act, resize_like


class SemanticFPNHead(nn.Module):
    """A feature pyramid whose levels are upsampled to the first level and added.

    ``logits = classifier(dropout(sum_i up_i(P_i)))``; ``up_i`` has n_i times a 3x3 convolution,
    batch norm, ReLU and bilinear upsampling by 2, n_i = log2(stride_i / stride_0); the first level
    has one convolution. Semantic FPN (CVPR 2019, arXiv 1901.02446) in the configuration of PVT
    (ICCV 2021): batch norm in place of group norm, dropout, no norm in the pyramid.

    Args:
        in_channels: channels of the maps, the largest map first.
        strides: strides of the maps; each is twice the one before it.
        num_classes: number of classes.
        channels: channels of the pyramid.
        head_channels: channels of the upsampled levels; None for half of ``channels``.
        dropout: rate of dropout of whole channels before the classifier.

    Shape:
        maps (B, in_channels[i], H_i, W_i) to (B, num_classes, H_0, W_0).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        head_channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        width = head_channels or max(1, channels // 2)
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels)
        doublings = [(stride // strides[0]).bit_length() - 1 for stride in strides]
        self.levels = nn.ModuleList(_Level(channels, width, count) for count in doublings)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits at the resolution of the first map."""
        pyramid = self.fpn({str(level): x for level, x in enumerate(maps)}).values()
        first, *others = (level(x) for level, x in zip(self.levels, pyramid, strict=True))
        for x in others:
            first = first + resize_like(x, first)
        logits: Tensor = self.classifier(self.dropout(first))
        return logits


class _Level(nn.Module):
    """3x3 convolutions, each followed by upsampling by 2; one convolution alone for 0 doublings."""

    def __init__(self, in_channels: int, channels: int, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings
        widths = [in_channels] + [channels] * max(1, doublings)
        self.convs = nn.ModuleList(
            conv_norm_act(before, after, 3) for before, after in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            if self.doublings:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return x
