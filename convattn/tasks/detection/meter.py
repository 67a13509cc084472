"""The average precision of boxes and masks, computed by pycocotools or faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from convattn.tasks.detection.objects import Objects, finite

# Names of torchmetrics, and those of the columns and of the evaluation.
_NAMES = {
    "map": "map",
    "map_50": "map50",
    "map_75": "map75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "map_large": "map_large",
    "mar_1": "mar_1",
    "mar_10": "mar_10",
    "mar_100": "mar_100",
    "mar_small": "mar_small",
    "mar_medium": "mar_medium",
    "mar_large": "mar_large",
}
Kind = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "faster_coco_eval"]
# The values of pycocotools in float64; the defaults of torchmetrics are rounded to float32.
_IOUS = np.linspace(0.5, 0.95, 10).tolist()
_RECALLS = np.linspace(0.0, 1.0, 101).tolist()
KINDS: tuple[Kind, ...] = ("bbox", "segm")
PREFIXES: dict[Kind, str] = {"bbox": "", "segm": "mask_"}  # prefixes of the names of the results


class DetectionMeter(Metric):
    """Average precision and recall of boxes, and of masks, over the images of all processes.

    Args:
        masks: whether masks are measured too.
        backend: "pycocotools" or "faster_coco_eval".
    """

    full_state_update = False

    def __init__(self, *, masks: bool = False, backend: Backend = "pycocotools") -> None:
        super().__init__(sync_on_compute=False)  # the objects are no tensors of one shape
        self.masks = masks
        self.backend = backend
        self.found: list[Objects] = []
        self.targets: list[Objects] = []

    def update(self, outputs: Sequence[Objects], targets: Sequence[Objects]) -> None:
        """Add the found and the true objects of images."""
        self.found += map(finite, outputs)
        self.targets += targets

    def reset(self) -> None:
        """Remove all images."""
        super().reset()
        self.found, self.targets = [], []

    def compute(self) -> dict[str, Any]:
        """Return the results as `average_precision`; every process must call this method."""
        found, targets = _gathered(self.found), _gathered(self.targets)
        return average_precision(found, targets, masks=self.masks, backend=self.backend)


def average_precision(
    found: Iterable[Objects],
    targets: Iterable[Objects],
    *,
    masks: bool = False,
    backend: Backend = "pycocotools",
    curves: bool = False,
) -> dict[str, Any]:
    """Return average precisions and recalls by name.

    Args:
        found: the found objects of each image.
        targets: the true objects of each image.
        masks: whether masks are measured too.
        backend: "pycocotools" or "faster_coco_eval".
        curves: whether to return the precisions of each class too.

    Returns:
        Scalar tensors, NaN where there is no true object; names of results of masks start with
        "mask_". With ``curves`` also "precision" (10, 101, classes) and "recall" (10, classes) by
        IoU, recall and class, -1 where there is no true object; and "classes", the numbers of the
        classes.
    """
    kinds = KINDS if masks else KINDS[:1]
    metric = _AveragePrecision(
        iou_type=kinds,
        backend=backend,
        iou_thresholds=_IOUS,
        rec_thresholds=_RECALLS,
        extended_summary=curves,
        sync_on_compute=False,
    )
    metric.update(found, targets)
    values = metric.compute()
    results: dict[str, Any] = {}
    for kind in kinds:
        start, prefix = f"{kind}_" if masks else "", PREFIXES[kind]
        results |= {prefix + name: _or_nan(values[start + old]) for old, name in _NAMES.items()}
        if f"{start}precision" in values:
            results[f"{prefix}precision"] = values[f"{start}precision"][..., 0, -1]
            results[f"{prefix}recall"] = values[f"{start}recall"][..., 0, -1]
    if curves:  # for a single class, torchmetrics returns a number in place of a list
        results["classes"] = values["classes"].flatten().tolist()
    return results


class _AveragePrecision(MeanAveragePrecision):
    """torchmetrics' metric, for masks that are run-length encoded.

    Masks must be measured together with boxes: torchmetrics leaves out the images without true
    masks, and what was found in them, where it measures masks alone.
    """

    def update(  # type: ignore[override]
        self, found: Iterable[Objects], targets: Iterable[Objects]
    ) -> None:
        """Add the objects of images."""
        for one in found:
            self.detection_scores.append(one["scores"].float())
            self._add("detection", one)
        for one in targets:
            self.groundtruth_crowds.append(one["crowd"].int())
            self.groundtruth_area.append(one["area"].float())
            self._add("groundtruth", one)

    def _add(self, kind: str, objects: Objects) -> None:
        getattr(self, f"{kind}_labels").append(objects["labels"])
        boxes = box_convert(objects["boxes"].float(), "xyxy", "xywh")
        getattr(self, f"{kind}_box").append(boxes)
        if "segm" in self.iou_type:
            masks = [(tuple(m["size"]), m["counts"].encode()) for m in objects["masks"]]
            getattr(self, f"{kind}_mask").append(tuple(masks))


def _gathered(objects: list[Objects]) -> list[Objects]:
    """Return the objects of the images of all processes."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return objects
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, objects)
    return [one for part in parts for one in part]


def _or_nan(value: Tensor) -> Tensor:
    """Return NaN for -1, which pycocotools returns where there is no true object."""
    return torch.where(value < 0, math.nan, value.float())
