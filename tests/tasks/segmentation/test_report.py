from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn.explain.page import Pictures
from convattn.explain.report import write_report
from convattn.runs.segmentations import SegmentationPrediction
from convattn.tasks.segmentation.report import PARTS
from tests.explain.pages import Page
from tests.explain.runs import write_table

NAMES = ("sky", "road", "sign")


def write_segments(folder: Path, images: int = 30) -> Path:
    """Write the evaluation of a segmenter; the last image has no pixels that count."""
    folder.mkdir()
    evaluation: dict[str, Any] = {
        "model": "glnet_nano", "data": "masks:x", "images": images, "class_names": list(NAMES),
        "mean_iou": 0.625, "pixel_accuracy": 0.875, "mean_accuracy": 0.75, "parameters": 5,
        "per_class": [
            {"name": "sky", "pixels": 1000, "iou": 0.75, "accuracy": 0.8125},
            {"name": "road", "pixels": 500, "iou": 0.5, "accuracy": 0.6875},
            {"name": "sign", "pixels": 0, "iou": None, "accuracy": None},
        ],
        "confusion": [[900, 100, 0], [50, 450, 0], [0, 0, 0]],
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    rows: list[Any] = [(n, f"val/{n}.png", n / 100, 0.5) for n in range(images - 1)]
    rows.append((images - 1, "val/empty.png", "", ""))
    write_table(folder / "predictions.csv", "index path mean_iou pixel_accuracy", rows)
    return folder


def predict(numbers: Sequence[int]) -> list[SegmentationPrediction]:
    mask = np.ones((40, 60), np.uint8)
    return [
        SegmentationPrediction(path="", size=(60, 40), class_names=NAMES, mask=mask)
        for _ in numbers
    ]


PICTURES = Pictures(
    image=lambda index: Image.new("RGB", (60, 40), (index, 90, 90)),
    target=lambda index: np.full((40, 60), index % 2, np.uint8),
    predict=predict,
    count=30,
)


def test_the_page_has_the_metrics_of_each_class(tmp_path: Path) -> None:
    words = Page(write_report(write_segments(tmp_path / "run"), parts=PARTS)).words
    assert "62.50%" in words
    assert "sky 1,000 75.0% 81.2%" in words
    assert "road 500 50.0% 68.8%" in words
    assert "sign 0" not in words
    assert "sky road 100 10.0%" in words
    matrix = words[words.index("Confusion matrix") : words.index("Most confused pairs")]
    assert {"90", "10"} <= {*matrix.split()}  # per cent of the pixels of a class
    assert "900" not in matrix


def test_predictions_are_beside_the_truth_without_images_that_do_not_count(
    tmp_path: Path,
) -> None:
    run = write_segments(tmp_path / "run")
    page = Page(write_report(run, parts=PARTS, pictures=PICTURES))
    assert page.pictures() == 12
    words = page.words[page.words.index("Predictions beside the truth") :]
    assert "sky road" in words[: words.index("Random images")]  # the legend
    assert "mean IoU 0.0% pixels 50.0% correct" in words
    assert words.index("mean IoU 28.0%") > words.index("The best mean")
    assert "empty" not in page.words


@pytest.mark.parametrize(
    ("key", "value"), [("per_class", [{"name": "sky", "iou": 0.5}]), ("confusion", {"classes": 2})]
)
def test_a_damaged_evaluation_is_noted(tmp_path: Path, key: str, value: object) -> None:
    run = write_segments(tmp_path / "run")
    found = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**found, key: value}))
    words = Page(write_report(run, parts=PARTS)).words
    assert words.count("evaluation.json is damaged") == 1
