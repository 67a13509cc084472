"""torchvision's region proposal network, which does not learn from regions inside a crowd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork

from convattn.tasks.detection.models.anchors import AnchorMatcher
from convattn.tasks.detection.models.targets import Objects, covered


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network; anchors inside a crowd are no negative examples.

    An object whose best anchors have an IoU below 0.3 matches none, as in the published detectors.

    Args:
        **arguments: arguments of torchvision's ``RegionProposalNetwork``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        high, low = arguments["fg_iou_thresh"], arguments["bg_iou_thresh"]
        self.proposal_matcher = AnchorMatcher(high, low, least=low)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Objects]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return labels (1: object, 0: background, -1: not used) and boxes of each image's anchors.

        Args:
            anchors: (A, 4) for each image.
            targets: ``boxes`` and ``crowd_boxes`` of each image.
        """
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            if len(target["crowd_boxes"]):
                label[(label == 0) & covered(anchor, target["crowd_boxes"])] = -1
        return labels, boxes

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and deltas; 0 if no anchor is used."""
        if not bool((torch.cat(labels) >= 0).any()):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
