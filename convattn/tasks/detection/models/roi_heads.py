"""torchvision's heads of regions, which do not learn from regions inside a crowd."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou

from convattn.tasks.detection.models.targets import Objects, covered


class RegionHeads(RoIHeads):
    """torchvision's heads of regions; regions inside a crowd are no negative examples."""

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
