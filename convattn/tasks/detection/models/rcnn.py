"""Faster R-CNN and Mask R-CNN (Ren et al., NeurIPS 2015; He et al., ICCV 2017)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from convattn.checks import check_positive
from convattn.tasks.detection.models.anchors import RATIOS, PyramidAnchors
from convattn.tasks.detection.models.detector import Detector
from convattn.tasks.detection.models.heads import (
    BoxPredictor,
    MaskPredictor,
    ProposalHead,
    PyramidRoIAlign,
)
from convattn.tasks.detection.models.roi_heads import RegionHeads
from convattn.tasks.detection.models.rpn import ProposalNetwork
from convattn.tasks.detection.models.targets import Objects

BOX_GRID, MASK_GRID = 7, 14  # rows and columns of a pooled region
_NAMES = {
    "loss_objectness": "rpn_cls",
    "loss_rpn_box_reg": "rpn_box",
}


class TwoStage(Detector):
    """A region proposal network, then heads that classify and refine the proposed regions.

    The pyramid has the levels P2 to P6, of strides 4 to 64; regions are pooled from P2 to P5.
    A method defines ``build_heads``.

    Args:
        model: the name of the backbone.
        num_classes: number of classes, without the background.
        head_depth: 3x3 convolutions of a head of masks, and of a convolutional head of boxes.
        head_width: width of the linear layers of a head of boxes.
        anchor_scale: side of a level's square anchor, in strides.
        train_proposals: the most regions of an image in training, before they are sampled.
        proposals: the most regions of an image in evaluation.
        train_candidates: the most anchors of a level before the suppression by IoU, in training.
        candidates: the same in evaluation.
        samples: regions of an image in the losses of the heads, a quarter of them objects at most.
        rpn_samples: anchors of an image in the losses of the proposals, half of them objects at
            most.
        **arguments: arguments of `Detector`.
    """

    def __init__(
        self,
        model: str,
        num_classes: int,
        *,
        head_depth: int = 4,
        head_width: int = 1024,
        anchor_scale: float = 8.0,
        train_proposals: int = 1000,
        proposals: int = 1000,
        train_candidates: int = 2000,
        candidates: int = 1000,
        samples: int = 512,
        rpn_samples: int = 256,
        **arguments: Any,
    ) -> None:
        numbers = {
            "head_depth": head_depth,
            "head_width": head_width,
            "train_proposals": train_proposals,
            "proposals": proposals,
            "train_candidates": train_candidates,
            "candidates": candidates,
            "samples": samples,
            "rpn_samples": rpn_samples,
        }
        for name, number in numbers.items():
            check_positive(name, number)
        super().__init__(model, num_classes, **arguments)
        self.head_depth = head_depth
        self.head_width = head_width
        self.samples = samples
        strides = self.backbone.strides
        self.rpn = ProposalNetwork(
            anchor_generator=PyramidAnchors([*strides, 2 * strides[-1]], anchor_scale),
            head=ProposalHead(self.backbone.out_channels, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": train_candidates, "testing": candidates},
            post_nms_top_n={"training": train_proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        self.roi_heads = self.build_heads()

    def build_heads(self) -> nn.Module:
        """Return the heads of regions, called like torchvision's ``RoIHeads``."""
        raise NotImplementedError

    def region_heads(
        self,
        head: nn.Module,
        *,
        iou: float = 0.5,
        weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        agnostic: bool = False,
    ) -> RegionHeads:
        """Return torchvision's heads of regions.

        Args:
            head: a module from pooled regions (R, channels, 7, 7) to features (R, head_width).
            iou: from this IoU a region is an example of its object, below it of the background.
            weights: the deltas to an object are multiplied by these.
            agnostic: whether all classes share the deltas.
        """
        channels, strides = self.backbone.out_channels, self.backbone.strides
        classes = self.num_classes + 1
        masks: dict[str, nn.Module] = {}
        if self.has_masks:
            masks = {
                "mask_roi_pool": PyramidRoIAlign(strides, MASK_GRID),
                "mask_head": MaskRCNNHeads(channels, [channels] * self.head_depth, 1),
                "mask_predictor": MaskPredictor(channels, channels, classes),
            }
        return RegionHeads(
            PyramidRoIAlign(strides, BOX_GRID),
            head,
            BoxPredictor(self.head_width, classes, agnostic=agnostic),
            fg_iou_thresh=iou,
            bg_iou_thresh=iou,
            batch_size_per_image=self.samples,
            positive_fraction=0.25,
            bbox_reg_weights=weights,
            score_thresh=self.score,
            nms_thresh=self.nms,
            detections_per_img=self.detections,
            **masks,
        )

    def linear_head(self) -> nn.Module:
        """Return a head of two linear layers."""
        return TwoMLPHead(self.backbone.out_channels * BOX_GRID**2, self.head_width)

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Objects]
    ) -> dict[str, Tensor]:
        """Return the losses of the proposals and of the heads."""
        # The heads count the background as class 0.
        targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        proposals, losses = self.rpn(images, features, targets)
        _, of_heads = self.roi_heads(features, proposals, images.image_sizes, targets)
        return {_NAMES.get(name, name): loss for name, loss in {**losses, **of_heads}.items()}

    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Objects]:
        """Return the objects found in each image."""
        proposals, _ = self.rpn(images, features)
        found, _ = self.roi_heads(features, proposals, images.image_sizes)
        return [{**objects, "labels": objects["labels"] - 1} for objects in found]


class FasterRCNN(TwoStage):
    """Proposals, then a head of two linear layers that classifies and refines them.

    Losses: ``rpn_cls``, ``rpn_box``, ``cls`` and ``box``. Arguments are those of `TwoStage`.

    Departure from Swin Transformer's and PVT's detectors: the losses of the deltas are smooth L1
    losses, linear from an error of 1/9 on, as in torchvision; theirs are L1 losses.
    """

    def build_heads(self) -> nn.Module:
        """Return the heads of regions."""
        return self.region_heads(self.linear_head())


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a second head that predicts a mask for each object.

    Losses: those of `FasterRCNN`, and ``mask``. Arguments are those of `TwoStage`.
    """

    has_masks = True
