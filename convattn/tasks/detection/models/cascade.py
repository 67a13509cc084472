"""Cascade Mask R-CNN (Cai and Vasconcelos, CVPR 2018, arXiv 1712.00726; TPAMI 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from convattn.checks import check_choice
from convattn.tasks.detection.models.rcnn import BOX_GRID, TwoStage
from convattn.tasks.detection.models.roi_heads import RegionHeads, mask_loss, predict
from convattn.tasks.detection.models.targets import Objects

IOUS = (0.5, 0.6, 0.7)  # from this IoU on, a region is an example of its object
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
GIOU_WEIGHT = 10.0
BOX_HEADS = ("conv", "linear")


class CascadeMaskRCNN(TwoStage):
    """Proposals, then three stages of heads, each trained on the refined regions of the last one.

    Losses: ``rpn_cls``, ``rpn_box``, and ``cls_i``, ``box_i`` and ``mask_i`` of stage i from 1 to
    3, weighted with 1, 0.5 and 0.25. The defaults are those of Swin Transformer's detector.

    Args:
        model: the name of the backbone.
        num_classes: number of classes, without the background.
        box_head: "conv": four convolutions with batch norms and a linear layer, deltas for each
            class, and the GIoU loss of the boxes; "linear": two linear layers, deltas that all
            classes share, and the smooth L1 loss of the deltas.
        train_proposals: the most regions of an image in training, before they are sampled.
        **arguments: arguments of `TwoStage`.
    """

    has_masks = True

    def __init__(
        self,
        model: str,
        num_classes: int,
        *,
        box_head: str = "conv",
        train_proposals: int = 2000,
        **arguments: Any,
    ) -> None:
        check_choice("box_head", box_head, BOX_HEADS)
        self.box_head = box_head
        super().__init__(model, num_classes, train_proposals=train_proposals, **arguments)

    def build_heads(self) -> nn.Module:
        """Return the heads of the three stages."""
        conv = self.box_head == "conv"
        stages = [
            self.region_heads(
                self.conv_head() if conv else self.linear_head(),
                iou=iou,
                weights=weights,
                agnostic=not conv,
            )
            for iou, weights in zip(IOUS, DELTA_WEIGHTS, strict=True)
        ]
        return CascadeRoIHeads(stages, giou=conv)

    def conv_head(self) -> nn.Module:
        """Return a head of convolutions with batch norms and one linear layer."""
        channels = self.backbone.out_channels
        shape = (channels, BOX_GRID, BOX_GRID)
        layers = [channels] * self.head_depth
        return FastRCNNConvFCHead(shape, layers, [self.head_width], norm_layer=nn.BatchNorm2d)


class CascadeRoIHeads(nn.Module):
    """Heads of regions in stages; each stage refines the regions for the next one.

    In training every stage samples its regions anew, the boxes of the objects included; these are
    not passed on to the next stage. A region is refined by the deltas of its object's class, or of
    the likeliest class if it is background, without a gradient. In evaluation the class logits are
    averaged over the stages, the boxes are those of the last stage, and the masks are averaged.

    Args:
        stages: the heads of each stage.
        loss_weights: weight of each stage's losses.
        giou: whether the loss of the boxes is 10 times the GIoU loss of the refined boxes, instead
            of the smooth L1 loss of the deltas.
    """

    def __init__(
        self,
        stages: Sequence[RegionHeads],
        loss_weights: Sequence[float] = LOSS_WEIGHTS,
        *,
        giou: bool = True,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.loss_weights = tuple(loss_weights)
        self.giou = giou

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
            return self._detect(features, proposals, image_shapes), {}
        assert targets is not None
        losses: dict[str, Tensor] = {}
        for i, (stage, weight) in enumerate(zip(self._stages(), self.loss_weights, strict=True)):
            found, proposals = self._train(stage, features, proposals, image_shapes, targets)
            losses |= {f"{name}_{i + 1}": weight * loss for name, loss in found.items()}
        return [], losses

    def _stages(self) -> list[Any]:
        return list(self.stages)

    def _train(
        self,
        stage: Any,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Objects],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the losses of a stage, and the regions of the next one."""
        regions, matches, labels, deltas = stage.select_training_samples(proposals, targets)
        logits, predicted = predict(stage, features, regions, image_shapes)
        objects = [_matched(t["boxes"], m) for t, m in zip(targets, matches, strict=True)]
        label = torch.cat(labels)
        losses = {
            "cls": F.cross_entropy(logits, label),
            "box": self._box_loss(stage, predicted, regions, label, objects, deltas),
            "mask": mask_loss(stage, features, regions, matches, labels, targets, image_shapes),
        }
        refined = refine(stage.box_coder, regions, predicted, _classes(logits, label), image_shapes)
        passed_on = [
            new[~((label > 0) & (region == box).all(1))]
            for new, region, box, label in zip(refined, regions, objects, labels, strict=True)
        ]
        return losses, passed_on

    def _box_loss(
        self,
        stage: Any,
        predicted: Tensor,
        regions: list[Tensor],
        label: Tensor,
        objects: list[Tensor],
        deltas: Sequence[Tensor],
    ) -> Tensor:
        """Return the loss of the boxes: the sum over regions of objects, divided by all regions."""
        positive = torch.where(label > 0)[0]
        chosen = _of_class(predicted, label)[positive]
        if self.giou:
            boxes = stage.box_coder.decode_single(chosen, torch.cat(regions)[positive])
            loss = generalized_box_iou_loss(boxes, torch.cat(objects)[positive], reduction="sum")
            loss = GIOU_WEIGHT * loss
        else:
            loss = F.smooth_l1_loss(chosen, torch.cat(list(deltas))[positive], reduction="sum")
        return loss / label.numel()

    def _detect(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[Objects]:
        """Return the objects found in each image."""
        every: list[Tensor] = []
        last = self._stages()[-1]
        for stage in self._stages():
            logits, deltas = predict(stage, features, proposals, image_shapes)
            every.append(logits)
            if stage is not last:
                classes = _classes(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
                proposals = refine(stage.box_coder, proposals, deltas, classes, image_shapes)
        mean = torch.stack(every).mean(0)
        boxes, scores, labels = last.postprocess_detections(mean, deltas, proposals, image_shapes)
        masks = self._masks(features, boxes, labels, image_shapes)
        return [
            {"boxes": b, "scores": s, "labels": c, "masks": m}
            for b, s, c, m in zip(boxes, scores, labels, masks, strict=True)
        ]

    def _masks(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """Return the mean of the stages' mask probabilities (N, 1, 28, 28) of each image."""
        pooled = self._stages()[0].mask_roi_pool(features, boxes, image_shapes)
        every = [
            torch.cat(maskrcnn_inference(s.mask_predictor(s.mask_head(pooled)), labels))
            for s in self._stages()
        ]
        return list(torch.stack(every).mean(0).split([len(b) for b in boxes]))


def refine(
    coder: Any,
    regions: list[Tensor],
    deltas: Tensor,
    classes: Tensor,
    image_shapes: list[tuple[int, int]],
) -> list[Tensor]:
    """Return the regions of each image, moved by the deltas of their classes, without a gradient.

    Args:
        coder: torchvision's ``BoxCoder``.
        regions: (R_i, 4) of each image.
        deltas: (R, 4 * K) of all regions.
        classes: (R,) class of each region.
        image_shapes: (height, width) of each image, to which the regions are clipped.
    """
    chosen = _of_class(deltas.detach(), classes)
    moved = coder.decode_single(chosen, torch.cat(regions)).split([len(r) for r in regions])
    return [clip_boxes_to_image(m, s) for m, s in zip(moved, image_shapes, strict=True)]


def _matched(boxes: Tensor, matches: Tensor) -> Tensor:
    """Return each region's object, or zeros in an image without objects."""
    return boxes[matches] if len(boxes) else boxes.new_zeros(len(matches), 4)


def _classes(logits: Tensor, label: Tensor) -> Tensor:
    """Return the labels, and for the background the likeliest other class."""
    return torch.where(label > 0, label, logits[:, 1:].argmax(1) + 1)


def _of_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """Return the deltas (R, 4) of each region's class from those of all classes (R, 4 * K)."""
    rows = torch.arange(len(classes), device=classes.device)
    return deltas.view(len(classes), deltas.shape[1] // 4, 4)[rows, classes]
