"""A batch of two images for the tests of detectors, and sizes of heads that two cores carry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from convattn.tasks.detection.models import Detector, build_detector, method_arguments

METHODS = ["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]
SMALL = {
    "channels": 16,
    "head_depth": 1,
    "head_width": 32,
    "train_proposals": 32,
    "proposals": 32,
    "train_candidates": 64,
    "candidates": 64,
    "samples": 16,
    "rpn_samples": 32,
    "anchor_scale": 4.0,
}
SIZES = [(64, 90), (60, 96)]
Target = dict[str, Any]


def small(method: str, backbone: str = "glnet_nano", **arguments: Any) -> Detector:
    """Build a detector of three classes with small heads."""
    known = method_arguments(method)
    sizes = {name: value for name, value in SMALL.items() if name in known}
    return build_detector(method, backbone, 3, **{**sizes, **arguments})


def images(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 64, 96)


def target(boxes: list[list[float]], labels: list[int], size: tuple[int, int]) -> Target:
    """The target of an image as the data sets return it."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "crowd": torch.zeros(len(boxes), dtype=torch.bool),
        "masks": tv_tensors.Mask(masks),
        "image_id": 17,
    }


def targets() -> list[Target]:
    """Two objects in the first image, none in the second."""
    first = target([[4, 4, 40, 40], [30, 20, 60, 60]], [0, 2], SIZES[0])
    return [first, target([], [], SIZES[1])]
