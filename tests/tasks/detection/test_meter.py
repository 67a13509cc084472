from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convattn.tasks.detection.meter import Backend, DetectionMeter, Kind, average_precision
from convattn.tasks.detection.objects import Objects
from tests.tasks.detection.random_objects import SIZE, objects_of, random_images

STATS = (
    "map", "map50", "map75", "map_small", "map_medium", "map_large",
    "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large",
)  # fmt: skip


def coco_eval(
    found: Sequence[Objects], targets: Sequence[Objects], classes: int, kind: Kind
) -> COCOeval:
    """Return COCO's own evaluation of the same objects, read in COCO's own format."""
    truth: dict[str, Any] = {
        "info": {},
        "images": [{"id": t["image_id"], "width": SIZE[0], "height": SIZE[1]} for t in targets],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        "annotations": [],
    }
    results = []
    for one, target in zip(found, targets, strict=True):
        for index, (x1, y1, x2, y2) in enumerate(target["boxes"].double().tolist()):
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": target["image_id"],
                "category_id": int(target["labels"][index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(target["area"][index]),
                "iscrowd": int(target["crowd"][index]),
                "segmentation": target["masks"][index],
            }
            truth["annotations"].append(annotation)
        for index, (x1, y1, x2, y2) in enumerate(one["boxes"].double().tolist()):
            result = {
                "image_id": target["image_id"],
                "category_id": int(one["labels"][index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(one["scores"][index]),
            }
            if kind == "segm":
                result = {**result, "segmentation": one["masks"][index]}
                del result["bbox"]
            results.append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def measured(
    found: Sequence[Objects],
    targets: Sequence[Objects],
    *,
    masks: bool = True,
    backend: Backend = "pycocotools",
    curves: bool = False,
) -> dict[str, Any]:
    """Return the results of the meter, which gets the images in two batches, or with curves."""
    if curves:
        return average_precision(found, targets, masks=masks, backend=backend, curves=True)
    meter = DetectionMeter(masks=masks, backend=backend)
    half = len(found) // 2
    for batch in (slice(None, half), slice(half, None)):
        meter.update(found[batch], targets[batch])
    return meter.compute()


@pytest.mark.parametrize("crowds", [True, False])
@pytest.mark.parametrize(("kind", "prefix"), [("bbox", ""), ("segm", "mask_")])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_results_are_those_of_cocos_own_program(
    kind: Kind, prefix: str, seed: int, crowds: bool
) -> None:
    found, targets = random_images(20, 3, seed, crowds=crowds)
    expected = coco_eval(found, targets, 3, kind)
    results = measured(found, targets, curves=True)
    scalars = measured(found, targets)
    for name, value in scalars.items():
        assert torch.equal(results[name].nan_to_num(-1), value.nan_to_num(-1)), name
    numbers = [results[prefix + name].item() for name in STATS]
    stats = [math.nan if value < 0 else value for value in expected.stats.tolist()]
    assert numbers == pytest.approx(stats, abs=1e-6, nan_ok=True)
    assert 0.05 < numbers[0] < 0.9
    precision = expected.eval["precision"][..., 0, -1]
    assert np.allclose(results[f"{prefix}precision"].numpy(), precision, atol=1e-6)
    assert np.allclose(
        results[f"{prefix}recall"].numpy(), expected.eval["recall"][..., 0, -1], atol=1e-6
    )
    assert results["classes"] == [0, 1, 2]


def test_objects_of_all_sizes_are_in_the_random_images() -> None:
    _, targets = random_images(20, 3, 0)
    areas = torch.cat([target["area"] for target in targets])
    assert (areas < 32**2).any()
    assert ((areas > 32**2) & (areas < 96**2)).any()
    assert any(len(target["boxes"]) == 0 for target in targets)
    assert any(target["crowd"].any() for target in targets)


def test_both_programs_give_the_same_results() -> None:
    pytest.importorskip("faster_coco_eval")
    found, targets = random_images(20, 3, 2)
    ours = measured(found, targets)
    fast = measured(found, targets, backend="faster_coco_eval")
    assert ours.keys() == fast.keys()
    for name, value in ours.items():
        assert fast[name].item() == pytest.approx(value.item(), abs=1e-6, nan_ok=True), name


SQUARE = [10.0, 10.0, 50.0, 50.0]
ASIDE = [10.0, 10.0, 50.0, 42.0]  # IoU 0.8 with the square


@pytest.mark.parametrize(
    ("boxes", "labels", "scores", "expected", "at50"),
    [
        ([SQUARE], [0], [0.9], 1.0, 1.0),
        ([ASIDE], [0], [0.9], 0.7, 1.0),  # right at 7 of 10 thresholds: 0.5, 0.55, ... 0.8
        ([SQUARE], [1], [0.9], 0.0, 0.0),  # another class
        ([SQUARE, SQUARE], [0, 0], [0.9, 0.8], 1.0, 1.0),  # the second one comes too late
        ([[60, 60, 90, 90], SQUARE], [0, 0], [0.9, 0.8], 0.5, 0.5),  # the first one is wrong
        ([], [], [], 0.0, 0.0),
    ],
)
def test_cases_that_can_be_computed_by_hand(
    boxes: Any, labels: Any, scores: Any, expected: float, at50: float
) -> None:
    results = measured(
        [objects_of(boxes, labels, scores=scores)], [objects_of([SQUARE], [0])], masks=False
    )
    assert results["map"].item() == pytest.approx(expected, abs=1e-6)
    assert results["map50"].item() == pytest.approx(at50, abs=1e-6)
    assert "mask_map" not in results


def test_a_found_object_in_a_crowd_is_neither_right_nor_wrong() -> None:
    target = objects_of([SQUARE, [60, 10, 150, 100]], [0, 0], crowd=[False, True])
    found = objects_of([[70, 20, 90, 40], SQUARE], [0, 0], scores=[0.9, 0.8])
    assert measured([found], [target], masks=False)["map"].item() == pytest.approx(1.0)


def test_the_area_of_the_annotation_decides_whether_an_object_is_small() -> None:
    target = objects_of([SQUARE], [0])
    target["area"] = torch.tensor([900.0])
    results = measured([objects_of([SQUARE], [0], scores=[0.5])], [target], masks=False)
    assert results["map_small"].item() == pytest.approx(1.0)
    assert math.isnan(results["map_medium"].item())


@pytest.mark.parametrize("masks", [True, False])
def test_without_true_objects_there_is_no_result(masks: bool) -> None:
    empty = objects_of([], [])
    for found in (empty, objects_of([SQUARE], [0], scores=[0.9])):
        results = measured([found], [empty], masks=masks, curves=True)
        assert math.isnan(results["map"].item())
        assert math.isnan(results["mar_100"].item())


def test_a_meter_forgets_its_images() -> None:
    meter = DetectionMeter()
    meter.update([objects_of([SQUARE], [0], scores=[0.9])], [objects_of([SQUARE], [0])])
    assert meter.compute()["map"].item() == pytest.approx(1.0)
    meter.reset()
    meter.update([objects_of([], [])], [objects_of([SQUARE], [0])])
    assert meter.compute()["map"].item() == 0.0
