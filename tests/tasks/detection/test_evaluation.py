from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convattn.data import DataSource, Preprocess
from convattn.data.source import ArrayImages
from convattn.runs.card import ModelCard
from convattn.tasks.detection.evaluation import DetectionEvaluation, summarise
from convattn.tasks.detection.objects import Objects
from convattn.training.evaluation import Found
from tests.tasks.detection.random_objects import objects_of, random_images
from tests.tasks.detection.test_meter import coco_eval

CAT, DOG, OWL = range(3)
LEFT, RIGHT = [10.0, 10.0, 50.0, 50.0], [70.0, 10.0, 110.0, 50.0]


def without_masks(objects: list[Objects]) -> list[Objects]:
    return [Objects(**{**one, "masks": []}) for one in objects]


def evaluated(
    found: list[Objects], targets: list[Objects], method: str = "mask_rcnn"
) -> DetectionEvaluation:
    """Return the evaluation of images in batches of two."""
    if method in ("retinanet", "faster_rcnn"):
        found, targets = without_masks(found), without_masks(targets)
    images = ArrayImages(np.zeros((len(found), 8, 8), np.uint8), [0] * len(found))
    card = ModelCard(
        model="glnet_nano",
        model_args={},
        class_names=("cat", "dog", "owl"),
        preprocess=Preprocess((3, 64, 64), (0.5,) * 3, (0.5,) * 3),
        task="detection",
        method=method,
        epoch=4,
    )
    outputs = Found(
        outputs=[found[i : i + 2] for i in range(0, len(found), 2)],
        targets=[targets[i : i + 2] for i in range(0, len(found), 2)],
        numbers=list(range(len(found))),
        broken=[],
        split="val",
        images_per_second=3.0,
        parameters=17,
        notes=["a note"],
    )
    return summarise(card, DataSource("coco:x", card.class_names, images, images), images, outputs)


@pytest.fixture(scope="module")
def simple() -> DetectionEvaluation:
    """Two cats and a dog; a cat and the dog are found, and the dog once too often."""
    targets = [objects_of([LEFT, RIGHT], [CAT, DOG]), objects_of([LEFT], [CAT], image_id=9)]
    found = [
        objects_of([LEFT, RIGHT, [0, 60, 20, 90]], [CAT, DOG, DOG], scores=[0.9, 0.8, 0.7]),
        objects_of([], []),
    ]
    return evaluated(found, targets)


def test_the_results_of_a_class_and_of_all(simple: DetectionEvaluation) -> None:
    cat, dog, owl = simple.per_class
    assert (cat.objects, dog.objects, owl.objects) == (2, 1, 0)
    assert cat.map50 == pytest.approx(51 / 101)  # recall 0.5 with precision 1
    found = (dog.map, dog.map50, dog.recall, dog.mask_map)
    assert found == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert (owl.map, owl.map50, owl.mask_map) == (None, None, None)
    assert simple.map50 == pytest.approx((51 / 101 + 1) / 2)
    assert math.isnan(simple.map_large)
    assert (simple.images, simple.objects, simple.crowds, simple.epoch) == (2, 3, 0, 4)


def test_the_confusion_has_a_background(simple: DetectionEvaluation) -> None:
    assert list(simple.confusion) == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_the_curves_are_precisions_at_101_recalls(simple: DetectionEvaluation) -> None:
    assert simple.curves["cat"] == [1.0] * 51 + [0.0] * 50
    assert "owl" not in simple.curves
    assert simple.mask_curves.keys() == simple.curves.keys()


def test_results_are_those_of_cocos_own_program() -> None:
    found, targets = random_images(16, 3, 5)
    result = evaluated(found, targets)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        expected = coco_eval(found, targets, 3, kind)  # type: ignore[arg-type]
        ours = [getattr(result, prefix + name) for name in ("map", "map50", "map75", "map_small")]
        assert ours == pytest.approx(expected.stats.tolist()[:4], abs=1e-6)
        for label, row in enumerate(result.per_class):
            precision = expected.eval["precision"][..., label, 0, -1]
            assert getattr(row, f"{prefix}map") == pytest.approx(precision.mean(), abs=1e-6)


@pytest.mark.parametrize("method", ["mask_rcnn", "retinanet"])
def test_the_files_have_the_numbers_the_images_and_the_objects(tmp_path: Path, method: str) -> None:
    found, targets = random_images(6, 3, 1)
    result = evaluated(found, targets, method)
    result.write(tmp_path)
    values: dict[str, Any] = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["map"] == pytest.approx(result.map)
    assert ("mask_map" in values) == (method == "mask_rcnn")
    assert np.sum(values["confusion"]) == sum(count for _, _, count in result.confusion.counts())
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["objects"]) for row in rows] == [int((~t["crowd"]).sum()) for t in targets]
    assert all(int(r["right"]) + int(r["missed"]) == int(r["objects"]) for r in rows)
    objects = json.loads((tmp_path / "detections.json").read_text())
    assert len(objects) == sum(len(one["labels"]) for one in found)
    assert {o["image_id"] for o in objects} <= {t["image_id"] for t in targets}
    assert all(("segmentation" in o) == (method == "mask_rcnn") for o in objects)
    assert {o["category_id"] for o in objects} == {1, 2, 3}


def test_the_file_of_the_numbers_is_small_for_many_objects(tmp_path: Path) -> None:
    found, targets = random_images(60, 3, 1)
    evaluated(found, targets, "retinanet").write(tmp_path)
    assert (tmp_path / "evaluation.json").stat().st_size < 10_000


def test_data_of_one_class_has_a_curve() -> None:
    result = evaluated([objects_of([LEFT], [DOG], scores=[0.9])], [objects_of([LEFT], [DOG])])
    assert result.per_class[DOG].map == pytest.approx(1.0)
    assert result.curves == {"dog": [1.0] * 101}


def test_the_words_of_the_command(simple: DetectionEvaluation) -> None:
    rows = dict(simple.headline())
    assert rows["boxes"] == (
        "AP 75.2%, AP50 75.2%, AP75 75.2%, small none, medium 75.2%, large none"
    )
    assert rows["masks"].startswith("AP 75.2%")
    assert rows["objects"] == "3"
    assert simple.best_line().startswith("AP 75.2%, AP50 75.2%, masks AP 75.2%, AP50 75.2% (2 held")
    assert "dog          1   100.0%   100.0%   100.0%    100.0%     100.0%" in simple.table()
    assert "owl" not in simple.table()


def test_data_without_objects_can_be_evaluated(tmp_path: Path) -> None:
    empty = objects_of([], [])
    result = evaluated([empty, objects_of([LEFT], [CAT], scores=[0.9])], [empty, empty])
    result.write(tmp_path)
    assert math.isnan(result.map)
    assert result.curves == {}
    assert json.loads((tmp_path / "evaluation.json").read_text())["map"] is None
    assert "none" in result.best_line()
