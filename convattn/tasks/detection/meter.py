"""The average precision of boxes and masks, computed by COCO's own program."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from convattn.tasks.detection.objects import Objects

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
KINDS: tuple[Kind, ...] = ("bbox", "segm")
PREFIXES: dict[Kind, str] = {"bbox": "", "segm": "mask_"}  # of the names of the results


class DetectionMeter(Metric):
    """Average precision and recall of boxes, and of masks, over the images of all processes.

    A value is NaN where there is no true object, such as no small one.

    Args:
        masks: whether masks are measured too.
        backend: "pycocotools" or "faster_coco_eval".
        curves: whether ``compute`` also returns the precisions of all classes.
    """

    full_state_update = False

    def __init__(
        self, *, masks: bool = False, backend: Backend = "pycocotools", curves: bool = False
    ) -> None:
        super().__init__(sync_on_compute=False)  # the objects are no tensors of one shape
        self.masks = masks
        self.backend = backend
        self.curves = curves
        self.found: list[Objects] = []
        self.targets: list[Objects] = []

    def update(self, outputs: Sequence[Objects], targets: Sequence[Objects]) -> None:
        """Add the found and the true objects of images."""
        self.found += outputs
        self.targets += targets

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self.found, self.targets = [], []

    def compute(self) -> dict[str, Any]:
        """Return the results by name; those of masks start with "mask_"."""
        found, targets = _gathered(self.found), _gathered(self.targets)
        results: dict[str, Any] = {}
        for kind in KINDS if self.masks else KINDS[:1]:
            values = precision(found, targets, kind, self.backend, curves=self.curves)
            results |= {PREFIXES[kind] + name: value for name, value in values.items()}
        return results


def precision(
    found: Sequence[Objects],
    targets: Sequence[Objects],
    kind: Kind,
    backend: Backend = "pycocotools",
    *,
    curves: bool = False,
) -> dict[str, Any]:
    """Return average precisions and recalls.

    Args:
        found: the found objects of each image.
        targets: the true objects of each image.
        kind: "bbox" compares boxes, "segm" masks.
        backend: "pycocotools" or "faster_coco_eval".
        curves: whether to return the precision at each IoU (10), recall (101) and class too.

    Returns:
        Scalar tensors by name, NaN where there is no true object; with ``curves`` also
        "precision" (10, 101, classes), -1 where there is no true object, "recall" (10, classes)
        and "classes", the numbers of the classes that occur.
    """
    metric = _AveragePrecision(
        iou_type=kind, backend=backend, extended_summary=curves, sync_on_compute=False
    )
    metric.update(found, targets)
    results = metric.compute()
    values = {new: _or_nan(results[old]) for old, new in _NAMES.items()}
    if not curves or "precision" not in results:
        return values
    return {
        **values,
        "precision": results["precision"][..., 0, -1],
        "recall": results["recall"][..., 0, -1],
        "classes": results["classes"].tolist(),
    }


class _AveragePrecision(MeanAveragePrecision):
    """torchmetrics' metric, for masks that are run-length encoded."""

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
        if "bbox" in self.iou_type:
            boxes = box_convert(objects["boxes"].float(), "xyxy", "xywh")
            getattr(self, f"{kind}_box").append(boxes)
        else:
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
    """Return NaN for -1, which COCO's program returns where there is no true object."""
    return torch.where(value < 0, math.nan, value.float())
