"""torchvision's heads of regions, which do not learn from regions inside a crowd."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.ops import box_iou

from convattn.tasks.detection.models.targets import Objects, covered


class RegionHeads(RoIHeads):
    """torchvision's heads of regions; regions inside a crowd are no negative examples."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Objects] | None = None,
    ) -> tuple[list[Objects], dict[str, Tensor]]:
        """Return the objects found in each image and no losses; in training no objects, but losses.

        Args:
            features: the levels of the pyramid.
            proposals: regions (R, 4) of each image.
            image_shapes: (height, width) of each image without its padding.
            targets: the objects of each image, labels from 1, in training.
        """
        if not self.training:
            found: tuple[list[Objects], dict[str, Tensor]]
            found = super().forward(features, proposals, image_shapes)
            return found
        assert targets is not None
        regions, matches, labels, deltas = self.select_training_samples(proposals, targets)
        logits, predicted = predict(self, features, regions, image_shapes)
        cls, box = fastrcnn_loss(logits, predicted, labels, list(deltas))
        losses = {"cls": cls, "box": box}
        if self.has_mask():
            losses["mask"] = mask_loss(
                self, features, regions, matches, labels, targets, image_shapes
            )
        return [], losses

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[Objects]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], tuple[Tensor, ...]]:
        """Sample regions, the boxes of the objects included.

        Args:
            proposals: (R, 4) for each image.
            targets: ``boxes``, ``labels`` and ``crowd_boxes`` of each image.

        Returns:
            For each image the sampled regions, the indices of their objects, their labels (0 is the
            background), and the deltas to their objects.
        """
        kept = [self._outside(p, t) for p, t in zip(proposals, targets, strict=True)]
        return super().select_training_samples(kept, targets)

    def _outside(self, proposals: Tensor, target: Objects) -> Tensor:
        """Return the regions that match an object or are not inside a crowd, at least one."""
        crowd, boxes = target["crowd_boxes"], target["boxes"]
        if not len(crowd) or not len(proposals):
            return proposals
        keep = ~covered(proposals, crowd)
        if len(boxes):
            keep |= box_iou(boxes, proposals).amax(0) >= self.proposal_matcher.high_threshold
        elif not bool(keep.any()):
            keep[0] = True  # the mean loss over no region is NaN
        return proposals[keep]


def predict(
    heads: Any,
    features: dict[str, Tensor],
    regions: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    """Return the class logits and the deltas of regions.

    Args:
        heads: torchvision's ``RoIHeads``.
        features: the levels of the pyramid.
        regions: (R, 4) of each image.
        image_shapes: (height, width) of each image without its padding.
    """
    pooled = heads.box_roi_pool(features, regions, image_shapes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    return logits, deltas


def mask_loss(
    heads: Any,
    features: dict[str, Tensor],
    regions: list[Tensor],
    matches: list[Tensor],
    labels: list[Tensor],
    targets: list[Objects],
    image_shapes: list[tuple[int, int]],
) -> Tensor:
    """Return the loss of the masks of the regions that match an object.

    torchvision takes the masks half a pixel to the right of and below the regions, which costs
    a tenth of the IoU of an object of ten pixels; here masks and regions agree.

    Args:
        heads: torchvision's ``RoIHeads``.
        features: the levels of the pyramid.
        regions: (R, 4) of each image.
        matches: (R,) object of each region.
        labels: (R,) class of each region, 0 for the background.
        targets: ``masks`` and ``labels`` of each image.
        image_shapes: (height, width) of each image without its padding.
    """
    positive = [label > 0 for label in labels]
    regions = [r[p] for r, p in zip(regions, positive, strict=True)]
    matches = [m[p] for m, p in zip(matches, positive, strict=True)]
    pooled = heads.mask_roi_pool(features, regions, image_shapes)
    logits = heads.mask_predictor(heads.mask_head(pooled))
    masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
    regions = [r - 0.5 for r in regions]  # the centre of pixel i is at i in torchvision's pooling
    loss: Tensor = maskrcnn_loss(logits, regions, masks, classes, matches)
    return loss
