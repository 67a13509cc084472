"""RetinaNet (Lin et al., ICCV 2017, arXiv 1708.02002)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from convattn.checks import check_positive
from convattn.tasks.detection.models.anchors import RATIOS, AnchorMatcher, PyramidAnchors
from convattn.tasks.detection.models.detector import Detector
from convattn.tasks.detection.models.heads import RetinaHead
from convattn.tasks.detection.models.targets import Objects, covered

OCTAVES = 3  # anchor sizes of a level
LEAST_SIDE = 1e-2  # least width and height of an object in pixels, as in torchvision


class RetinaNet(Detector):
    """A classifier and a regressor of the anchors of five levels, with the focal loss.

    The pyramid has the levels P3 to P7, of strides 8 to 128; P6 is computed from the last map of
    the backbone. Losses: ``cls`` and ``box``.

    Departure from the paper: the losses are divided by the number of positive anchors of each
    image, then averaged, as in torchvision.

    Args:
        model: the name of the backbone.
        num_classes: number of classes, without the background.
        head_depth: 3x3 convolutions of a head, at most four.
        anchor_scale: side of a level's smallest square anchor, in strides.
        candidates: the most anchors of a level that become objects before the suppression by IoU.
        **arguments: arguments of `Detector`.
    """

    levels = 3

    def __init__(
        self,
        model: str,
        num_classes: int,
        *,
        head_depth: int = 4,
        anchor_scale: float = 4.0,
        candidates: int = 1000,
        **arguments: Any,
    ) -> None:
        check_positive("candidates", candidates)
        super().__init__(model, num_classes, **arguments)
        strides = self.backbone.strides
        self.candidates = candidates
        levels = [*strides, 2 * strides[-1], 4 * strides[-1]]
        self.anchors = PyramidAnchors(levels, anchor_scale, octaves=OCTAVES)
        count = OCTAVES * len(RATIOS)
        self.head = RetinaHead(self.backbone.out_channels, count, num_classes, head_depth)
        self.matcher = AnchorMatcher(0.5, 0.4)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    @staticmethod
    def extra_levels(last_channels: int, channels: int) -> ExtraFPNBlock:
        """Return the module that adds P6 and P7."""
        extra = LastLevelP6P7(last_channels, channels)
        extra.use_P5 = False  # torchvision takes P5 if the backbone has as many channels
        return extra

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Objects]
    ) -> dict[str, Tensor]:
        """Return the losses of the classes and of the boxes."""
        maps = list(features.values())
        outputs = self.head(maps)
        anchors = self.anchors(images, maps)
        matches = [self._match(a, t) for a, t in zip(anchors, targets, strict=True)]
        found = self.head.compute_loss(targets, outputs, anchors, matches)
        return {"cls": found["classification"], "box": found["bbox_regression"]}

    def _match(self, anchors: Tensor, target: Objects) -> Tensor:
        """Return each anchor's object, -1 for the background, or -2 if it is not used."""
        if len(target["boxes"]):
            matches = self.matcher(box_iou(target["boxes"], anchors))
        else:
            matches = torch.full_like(anchors[:, 0], Matcher.BELOW_LOW_THRESHOLD, dtype=torch.long)
        if len(target["crowd_boxes"]):
            background = matches == Matcher.BELOW_LOW_THRESHOLD
            inside = covered(anchors, target["crowd_boxes"])
            matches[background & inside] = Matcher.BETWEEN_THRESHOLDS
        return matches

    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Objects]:
        """Return the objects found in each image."""
        maps = list(features.values())
        outputs = self.head(maps)
        anchors = self.anchors(images, maps)[0]
        counts = [OCTAVES * len(RATIOS) * m.shape[-2] * m.shape[-1] for m in maps]
        return [
            self._select(scores, deltas, anchors, counts, size)
            for scores, deltas, size in zip(
                outputs["cls_logits"].sigmoid(),
                outputs["bbox_regression"],
                images.image_sizes,
                strict=True,
            )
        ]

    def _select(
        self,
        scores: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        counts: list[int],
        size: tuple[int, int],
    ) -> Objects:
        """Return the objects of an image from the scores (A, K) of its anchors."""
        best = [self._best(level) for level in scores.split(counts)]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        indices = torch.cat([i + self.num_classes * s for i, s in zip(best, starts, strict=True)])
        chosen = scores.flatten()[indices]
        rows, labels = indices // self.num_classes, indices % self.num_classes
        boxes = self.coder.decode_single(deltas[rows], anchors[rows])
        boxes = clip_boxes_to_image(boxes, size)
        inside = remove_small_boxes(boxes, LEAST_SIDE)
        boxes, chosen, labels = boxes[inside], chosen[inside], labels[inside]
        kept = batched_nms(boxes, chosen, labels, self.nms)[: self.detections]
        return {"boxes": boxes[kept], "scores": chosen[kept], "labels": labels[kept]}

    def _best(self, scores: Tensor) -> Tensor:
        """Return the indices of the highest scores of a level, above the least score."""
        flat = scores.flatten()
        indices = torch.where(flat > self.score)[0]
        top = flat[indices].topk(min(self.candidates, len(indices))).indices
        return indices[top]
