from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.explain.page import Pictures
from convattn.explain.report import write_report
from convattn.runs.detections import DetectionPrediction, FoundObject
from convattn.runs.metrics import Column
from convattn.runs.rle import encode_mask
from convattn.tasks.detection.report import NUMBERS, PARTS
from tests.explain.pages import Page
from tests.explain.runs import write_table

NAMES = ["cat", "<b>dog</b>", "bird"]


def write_detections(folder: Path, images: int = 30, *, masks: bool = False) -> Path:
    """Write the evaluation of a detector: image i has i % 5 wrong objects of five."""
    folder.mkdir()
    precision = [1 - recall / 200 for recall in range(101)]
    entry = {"objects": 40, "map": 0.25, "map50": 0.5, "recall": 0.75}
    if masks:
        entry |= {"mask_map": 0.125, "mask_map50": 0.375}
    evaluation: dict[str, Any] = {
        "model": "glnet_nano", "method": "retinanet", "data": "coco:x", "images": images,
        "class_names": NAMES, "objects": 100, "crowds": 1, "parameters": 5,
        "map": 0.3125, "map50": 0.625, "map75": 0.25, "map_small": None, "map_medium": 0.2,
        "map_large": 0.4, "mar_100": 0.45,
        "per_class": [{"name": NAMES[0], **entry}, {"name": NAMES[1], **entry, "map": 0.375},
                      {"name": NAMES[2], "objects": 0}],
        "curves": {NAMES[0]: precision, NAMES[1]: precision},
        "confusion": [[30, 2, 0, 8], [1, 33, 0, 6], [0, 0, 0, 0], [5, 0, 0, 0]],
        "confusion_score": 0.25,
    }  # fmt: skip
    if masks:
        evaluation |= {
            "mask_map": 0.1875,
            "mask_map50": 0.4375,
            "mask_curves": {NAMES[0]: precision},
        }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    rows = [(n, f"val/{n}.jpg", 5, 5 - n % 5, n % 5, n % 2) for n in range(images)]
    write_table(folder / "predictions.csv", "index path objects right missed false", rows)
    (folder / "config.yaml").write_text("task: detection\nmethod: mask_rcnn\nmodel: glnet_nano\n")
    return folder


def target(index: int) -> dict[str, Any]:
    boxes = torch.tensor([[5.0, 5.0, 30.0, 20.0]])
    return {"boxes": boxes, "labels": torch.tensor([index % 2]), "crowd": torch.tensor([0])}


def predict(numbers: Sequence[int]) -> list[DetectionPrediction]:
    mask = encode_mask(np.ones((40, 60)))
    box = (5.0, 5.0, 30.0, 20.0)
    found = FoundObject(name=NAMES[0], label=0, score=0.5, box=box, mask=mask)
    return [DetectionPrediction(path="", size=(60, 40), objects=(found,)) for _ in numbers]


def pictures(**changes: Any) -> Pictures:
    values: dict[str, Any] = {
        "image": lambda index: Image.new("RGB", (60, 40), (index, 90, 90)),
        "target": target,
        "predict": predict,
        "count": 30,
    }
    return Pictures(**{**values, **changes})


def test_the_page_has_precisions_of_all_sizes_and_of_each_class(tmp_path: Path) -> None:
    path = write_report(write_detections(tmp_path / "run"), parts=PARTS, best=("val_map",))
    words = Page(path).words
    assert "boxes 31.2% 62.5% 25.0% – 20.0% 40.0% 45.0%" in words  # noqa: RUF001
    assert "masks" not in words[words.index("Average precision") : words.index("Results by class")]
    assert "cat 40 25.0% 50.0% 75.0%" in words
    assert "<b>dog</b> 40 37.5%" in words
    assert "bird 0" not in words


def test_the_top_of_the_page_has_the_main_numbers(tmp_path: Path) -> None:
    run = write_detections(tmp_path / "run", masks=True)
    words = Page(write_report(run, parts=PARTS, numbers=NUMBERS, best=("val_map",))).words
    head = words[: words.index("Average precision")]
    assert "AP of boxes 31.25% AP50 of boxes 62.50% AP of masks 18.75%" in head
    assert "crowds" not in head
    assert "mask_rcnn with glnet_nano on coco:x" in head


def test_the_losses_of_the_parts_are_drawn_as_losses(tmp_path: Path) -> None:
    run = write_detections(tmp_path / "run")
    write_table(run / "metrics.csv", "epoch lr train_loss train_cls", [(1, 0.1, 2, 0.9)])
    columns = [Column("train_loss", "loss", "loss"), Column("train_cls", "cls", "loss")]
    words = Page(write_report(run, metrics=columns)).words
    assert "Metrics" not in words


def test_the_page_of_masks_has_their_precisions_and_curves(tmp_path: Path) -> None:
    page = Page(write_report(write_detections(tmp_path / "run", masks=True), parts=PARTS))
    assert "masks 18.8% 43.8%" in page.words
    assert "cat 40 25.0% 50.0% 75.0% 12.5% 37.5%" in page.words
    assert page.elements.count("svg") == 3


def test_the_confusion_has_the_background(tmp_path: Path) -> None:
    words = Page(write_report(write_detections(tmp_path / "run"), parts=PARTS)).words
    assert "with a score of at least 0.25" in words
    assert "cat background 8 20.0%" in words
    assert "background cat 5 100.0%" in words


def test_predictions_are_beside_the_truth_the_worst_first(tmp_path: Path) -> None:
    path = write_report(write_detections(tmp_path / "run"), parts=PARTS, pictures=pictures())
    page = Page(path)
    assert page.pictures() == 12
    words = page.words[page.words.index("Predictions beside the truth") :]
    worst, random, best = (words.index(w) for w in ("The worst", "Random images", "The best"))
    assert worst < random < best
    assert "right 1 of 5 missed 4 false 1" in words[worst:random]
    assert "missed" not in words[best:]
    assert all(link.startswith(("data:", "#")) for link in page.links)


def test_few_images_are_all_shown(tmp_path: Path) -> None:
    run = write_detections(tmp_path / "run", images=5)
    page = Page(write_report(run, parts=PARTS, pictures=pictures()))
    assert page.pictures() == 5
    assert "All images, the worst first" in page.words


def test_an_image_that_is_gone_leaves_its_name(tmp_path: Path) -> None:
    def number(index: int, path: str) -> int:
        if index == 4:
            raise FileNotFoundError(path)
        return index

    run = write_detections(tmp_path / "run", images=5)
    page = Page(write_report(run, parts=PARTS, pictures=pictures(number=number)))
    assert page.pictures() == 4
    assert "val/4.jpg" in page.words


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("per_class", [{"objects": 3}]),
        ("confusion", [[1, 2]]),
        ("curves", {"cat": "x"}),
        ("curves", {"cat": [1.0, 0.5], "dog": [1.0]}),
        ("curves", [1]),
    ],
)
def test_a_damaged_evaluation_is_noted_once_and_the_other_sections_stay(
    tmp_path: Path, key: str, value: object
) -> None:
    run = write_detections(tmp_path / "run")
    found = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**found, key: value}))
    words = Page(write_report(run, parts=PARTS, pictures=pictures())).words
    assert words.count("evaluation.json is damaged") == 1
    assert "Average precision" in words
    assert "Predictions beside the truth" in words


def test_damaged_predictions_are_noted(tmp_path: Path) -> None:
    run = write_detections(tmp_path / "run")
    (run / "predictions.csv").write_text("index,objects,right,missed,false\n1,x,2,3,4\n")
    words = Page(write_report(run, parts=PARTS, pictures=pictures())).words
    assert "predictions.csv is damaged" in words


def test_many_classes_are_folded_and_their_curves_have_no_names(tmp_path: Path) -> None:
    run = write_detections(tmp_path / "run")
    found = json.loads((run / "evaluation.json").read_text())
    names = [f"kind {number}" for number in range(80)]
    entry = {"objects": 3, "map": 0.5, "map50": 0.5, "recall": 0.5}
    found |= {
        "class_names": names,
        "per_class": [{"name": name, **entry} for name in names],
        "curves": {name: [1.0] * 101 for name in names},
        "confusion": {"classes": 81, "counts": [[0, 80, 3]]},
    }
    (run / "evaluation.json").write_text(json.dumps(found))
    words = Page(write_report(run, parts=PARTS)).words
    assert "The 15 hardest of 80 classes" in words
    assert "all classes" in words
    assert "kind 0 background 3 100.0%" in words
