"""torchvision's heads with outputs in float32: boxes and losses keep their digits in autocast."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from convattn.checks import check_positive


class ProposalHead(RPNHead):
    """The objectness and the deltas of the anchors."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits and the deltas of each level."""
        logits, deltas = super().forward(x)
        return [y.float() for y in logits], [y.float() for y in deltas]


class RetinaHead(RetinaNetHead):
    """The classes and the deltas of the anchors, after ``depth`` convolutions of at most four."""

    def __init__(self, channels: int, anchors: int, num_classes: int, depth: int = 4) -> None:
        check_positive("head_depth", depth)
        if depth > 4:
            raise ValueError(f"head_depth of a RetinaNet must be from 1 to 4, got {depth}")
        super().__init__(channels, anchors, num_classes)
        for head in (self.classification_head, self.regression_head):
            head.conv = head.conv[:depth]

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Return the logits (B, A, K) and the deltas (B, A, 4) of all levels."""
        return {name: value.float() for name, value in super().forward(x).items()}


class BoxPredictor(FastRCNNPredictor):
    """The class logits and the deltas of regions.

    Args:
        in_channels: channels of the input.
        num_classes: number of classes, background included.
        agnostic: whether all classes share the deltas.
    """

    def __init__(self, in_channels: int, num_classes: int, *, agnostic: bool = False) -> None:
        super().__init__(in_channels, num_classes)
        self.agnostic = agnostic
        if agnostic:
            self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, num_classes) and deltas (R, 4 * num_classes) of features (R, C)."""
        logits, deltas = (y.float() for y in super().forward(x))
        return logits, deltas.repeat(1, logits.shape[1]) if self.agnostic else deltas


class MaskPredictor(MaskRCNNPredictor):
    """The mask logits of regions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (R, num_classes, 2h, 2w) of features (R, C, h, w)."""
        return super().forward(x).float()


class PyramidRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling of regions, with the strides of the pyramid.

    torchvision guesses the strides from the first batch: the guess is wrong if the images are
    padded by more than half of their size. Regions are pooled in float32, with a sample for each
    cell of the map that a bin covers, as in the published detectors.

    Args:
        strides: stride of each level, powers of 2.
        output_size: rows and columns of the pooled region.
    """

    def __init__(self, strides: Sequence[int], output_size: int) -> None:
        names = [str(i) for i in range(len(strides))]
        super().__init__(names, output_size, sampling_ratio=0)
        self.scales = [1 / stride for stride in strides]
        first, *_, last = (round(math.log2(stride)) for stride in strides)
        self.map_levels = LevelMapper(first, last)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return the pooled regions (R, C, output_size, output_size)."""
        dtype = x[self.featmap_names[0]].dtype
        maps = {name: x[name].float() for name in self.featmap_names}
        return super().forward(maps, boxes, image_shapes).to(dtype)
