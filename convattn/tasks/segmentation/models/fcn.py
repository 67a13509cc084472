"""The head of fully convolutional networks, which supervises an inner map in training."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.tasks.segmentation.models.parts import classifier, conv_norm_act


class FCNHead(nn.Module):
    """``logits = classifier(dropout(ReLU(BN(conv3x3(x)))))`` of one map.

    FCN (CVPR 2015, arXiv 1411.4038), as UperNet uses it for its auxiliary loss.

    Args:
        in_channels: channels of the map.
        num_classes: number of classes.
        channels: channels of the 3x3 convolution.
        dropout: rate of dropout of whole channels before the classifier.

    Shape:
        (B, in_channels, H, W) to (B, num_classes, H, W).
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.conv = conv_norm_act(in_channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each position of a map."""
        logits: Tensor = self.classifier(self.dropout(self.conv(x)))
        return logits
