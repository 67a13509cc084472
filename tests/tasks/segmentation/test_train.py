"""Whole trainings on mask folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn import Predictor
from convattn.runs.segmentations import SegmentationPrediction
from convattn.tasks.table import evaluate, resume, train
from tests.tasks.classification.runs import rows, silent, written
from tests.tasks.segmentation.shapes import CLASSES, Scenes, tiny


def write_masks(folder: Path, train: int = 8, held_out: int = 3) -> Path:
    """Write scenes as a folder of images and a folder of masks."""
    images = Scenes([(64, 48)] * train + [(70, 50)] * held_out)
    for index in range(len(images)):
        part = "train" if index < train else "val"
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        images.image(index).save(folder / "images" / part / f"{index}.png")
        Image.fromarray(images.mask(index)).save(folder / "masks" / part / f"{index}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"data": f"masks:{folder / 'data'}", "runs": str(folder / "runs"), **changes}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with mask folders, and a run of two epochs on them."""
    folder = tmp_path_factory.mktemp("segmentation")
    write_masks(folder / "data")
    console = silent()
    config = tiny(**settings(folder, method="upernet", name="run", sched="constant"))
    result = train(config, console=console)
    assert "upernet with glnet_nano" in written(console)
    assert "mean IoU" in written(console)
    return folder, result


@pytest.mark.slow
def test_a_run_leaves_metrics_report_and_evaluation(finished):
    folder, result = finished
    run = folder / "runs" / "run"
    assert len(rows(run)) == 2
    assert {"train_loss", "val_miou", "val_acc", "val_macc"} <= set(rows(run)[0])
    values = json.loads((run / "evaluation.json").read_text())
    best = max(rows(run), key=lambda row: float(row["val_miou"]))
    assert values["mean_iou"] == pytest.approx(float(best["val_miou"]), abs=1e-6)
    assert values["images"] == 3
    assert "Predictions beside the truth" in (run / "report.html").read_text()
    assert "mean IoU" in result.evaluation.best_line()


@pytest.mark.slow
def test_a_run_is_evaluated_again_with_the_same_result(finished):
    folder, result = finished
    again: Any = evaluate(folder / "runs" / "run", workers=0, device="cpu")
    assert again.mean_iou == result.evaluation.mean_iou
    assert again.confusion == result.evaluation.confusion


@pytest.mark.slow
def test_a_trained_model_predicts_files_of_any_size(finished):
    folder, _ = finished
    predictor = Predictor.load(folder / "runs" / "run")
    sizes = [(31, 90), (200, 40), (64, 48)]
    paths = []
    for number, size in enumerate(sizes):
        paths.append(folder / f"{number}.png")
        Image.fromarray(np.full((size[1], size[0], 3), 99, np.uint8)).save(paths[-1])
    found = predictor(paths, flip=True, inference="slide")
    assert all(isinstance(prediction, SegmentationPrediction) for prediction in found)
    assert [p.mask.shape for p in found] == [(height, width) for width, height in sizes]
    assert [p.size for p in found] == sizes


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(finished):
    folder, expected = finished
    half = folder / "runs" / "half"
    config = tiny(**settings(folder, method="upernet", name="half", epochs=1, sched="constant"))
    train(config, console=silent())
    resumed = resume(half, overrides={"epochs": 2}, console=silent())
    assert resumed.evaluation.mean_iou == expected.evaluation.mean_iou
    assert [row["train_loss"] for row in rows(half)] == [
        row["train_loss"] for row in rows(folder / "runs" / "run")
    ]
    with pytest.raises(ValueError, match="short_side cannot change"):
        resume(half, overrides={"short_side": 32}, console=silent())
    with pytest.raises(ValueError, match="channels cannot change"):
        resume(half, overrides={"channels": 8}, console=silent())
