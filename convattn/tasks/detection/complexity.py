"""Multiply-adds of a detector, counted as the papers' tables were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convattn.models import count_call_macs
from convattn.tasks.detection.models import build_detector
from convattn.tasks.detection.models.cascade import CascadeRoIHeads
from convattn.tasks.detection.models.rcnn import BOX_GRID, MASK_GRID, TwoStage

BOX_REGIONS, MASK_REGIONS = 1000, 100  # regions that a head of boxes, and one of masks, computes


def count_detector_macs(
    method: str,
    backbone: str,
    num_classes: int = 80,
    size: tuple[int, int] = (800, 1280),
    **arguments: Any,
) -> dict[str, int]:
    """Return the multiply-adds of each part of a detector for one image.

    As in the papers' tables, a head of boxes computes 1,000 regions and a head of masks 100, in
    each stage of a cascade; pooling of regions and suppression by IoU are not counted.

    Args:
        method: the name of a method, as in `build_detector`.
        backbone: the name of a model.
        num_classes: number of classes, without the background.
        size: (height, width) of the image.
        **arguments: arguments of the method.

    Returns:
        Part to multiply-adds: "backbone", "pyramid", and "head", or "proposals", "boxes" and
        "masks". Their sum is the number of the tables.
    """
    with torch.device("meta"):
        model = build_detector(method, backbone, num_classes, **arguments).eval()
        image = torch.empty(1, model.backbone_args["in_chans"], *size)
    maps: list[Tensor] = []  # computed while they are counted: a pass on meta can take seconds
    levels: list[Tensor] = []
    return {
        "backbone": count_call_macs(lambda: maps.extend(model.backbone.maps(image))),
        "pyramid": count_call_macs(lambda: levels.extend(model.backbone.pyramid(maps).values())),
        **_head_macs(model, levels),
    }


def _head_macs(model: Any, levels: list[Tensor]) -> dict[str, int]:
    if not isinstance(model, TwoStage):
        return {"head": count_call_macs(model.head, levels)}
    heads: Any = model.roi_heads
    stages = heads.stages if isinstance(heads, CascadeRoIHeads) else [heads]
    macs = {
        "proposals": count_call_macs(model.rpn.head, levels),
        "boxes": sum(_box_macs(stage, levels[0]) for stage in stages),
    }
    if model.has_masks:
        macs["masks"] = sum(_mask_macs(stage, levels[0]) for stage in stages)
    return macs


def _box_macs(stage: Any, like: Tensor) -> int:
    pooled = like.new_empty(BOX_REGIONS, like.shape[1], BOX_GRID, BOX_GRID)
    return count_call_macs(lambda: stage.box_predictor(stage.box_head(pooled)))


def _mask_macs(stage: Any, like: Tensor) -> int:
    pooled = like.new_empty(MASK_REGIONS, like.shape[1], MASK_GRID, MASK_GRID)
    return count_call_macs(lambda: stage.mask_predictor(stage.mask_head(pooled)))
