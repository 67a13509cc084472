"""``convattn predict`` with a detector and a segmenter, whose weights are random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.cli import main
from convattn.data import open_dataset
from convattn.runs.weights import save_weights
from convattn.tasks.detection.task import Detection
from convattn.tasks.segmentation.task import Segmentation
from convattn.training.config import data_options
from convattn.training.task import Task
from tests.tasks.detection.scenes import tiny as detection
from tests.tasks.detection.scenes import write_scenes
from tests.tasks.segmentation.shapes import CLASSES
from tests.tasks.segmentation.shapes import scenes as masks
from tests.tasks.segmentation.shapes import tiny as segmentation


def saved(task: Task[Any], path: Path) -> Path:
    """Write the checkpoint of a new model."""
    torch.manual_seed(0)
    built = task.build()
    save_weights(built.model.state_dict(), built.card, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector, a detector without masks, a segmenter and ``images/``."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("predict")
    data = write_scenes(folder / "data")
    for method in ("mask_rcnn", "retinanet"):
        config = detection(data, method, score=0.001, nms=0.9)
        source = open_dataset(config.data, **data_options(config))
        saved(Detection(config, source), folder / f"{method}.safetensors")
    saved(Segmentation(segmentation(), masks()), folder / "segmenter.safetensors")
    (folder / "images").mkdir()
    for number, size in ((7, (64, 48)), (12, (40, 90))):
        Image.new("RGB", size, (number, 90, 90)).save(folder / "images" / f"{number:04}.png")
    return folder


def predict(folder: Path, model: str, *words: str | Path) -> int:
    images = str(folder / "images")
    return main(
        [
            "predict",
            str(folder / f"{model}.safetensors"),
            images,
            *map(str, words),
            "--device",
            "cpu",
        ]
    )


def test_the_json_of_a_detector_has_coco_results(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, "mask_rcnn", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [image["image_id"] for image in found["images"]] == [7, 12]
    assert [image["size"] for image in found["images"]] == [[64, 48], [40, 90]]
    objects = sum(len(image["objects"]) for image in found["images"])
    assert len(found["results"]) == objects > 0
    entry = found["results"][-1]
    assert set(entry) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert entry["segmentation"]["size"] == [90, 40]
    assert all(1 <= entry["category_id"] <= 3 for entry in found["results"])


def test_the_results_have_the_ids_of_the_annotation_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "data" / "annotations" / "instances_train2017.json"
    assert predict(folder, "mask_rcnn", "--json", "--ids", file) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["category_id"] for entry in found["results"]} <= {3, 7, 18}
    # The training part has 0001.png to 0008.png.
    assert [image["image_id"] for image in found["images"]] == [7, None]
    assert {entry["image_id"] for entry in found["results"]} == {7}


def test_the_lowest_score_is_an_option_and_decides_what_is_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, "mask_rcnn", "--json", "--score", "0.9999") == 0
    assert json.loads(capsys.readouterr().out)["results"] == []
    words = ("--score", "0.002", "--output", tmp_path / "drawn", "--masks", tmp_path / "masks")
    assert predict(folder, "mask_rcnn", *words) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["image", "objects"]
    drawn = Image.open(tmp_path / "drawn" / "0012.png").convert("RGB")
    assert drawn.height > 4 * 90  # a small image is enlarged, and a legend is below it
    assert np.asarray(Image.open(tmp_path / "masks" / "0012.png")).shape == (90, 40)


def test_a_detector_without_masks_has_none_to_write(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--masks", tmp_path / "masks", "--score", "0.001")
    assert predict(folder, "retinanet", *words) == 2
    assert "a prediction of detection has no masks" in capsys.readouterr().err


def test_options_of_other_tasks_are_errors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, "retinanet", "--top-k", "2") == 2
    assert "its options are: --score, --nms" in capsys.readouterr().err
    assert predict(folder, "segmenter", "--nms", "0.5") == 2
    assert "--nms is no option of segmentation" in capsys.readouterr().err
    assert predict(folder, "segmenter", "--ids", "x.json") == 2
    assert "--ids is for detection; the task of this model is segmentation" in (
        capsys.readouterr().err
    )


def test_the_classes_of_all_pixels_are_written_as_png(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--json", "--flip", "--masks", tmp_path / "masks", "--output", tmp_path / "drawn")
    assert predict(folder, "segmenter", *words) == 0
    found = json.loads(capsys.readouterr().out)
    mask = np.asarray(Image.open(tmp_path / "masks" / "0012.png"))
    assert mask.shape == (90, 40)
    shares = {entry["name"]: entry["share"] for entry in found["images"][1]["classes"]}
    assert shares == {CLASSES[n]: (mask == n).mean() for n in range(3) if (mask == n).any()}
    assert (tmp_path / "drawn" / "0007.png").is_file()


def evaluate(folder: Path, model: str, *words: str | Path) -> int:
    file = folder / f"{model}.safetensors"
    return main(
        ["eval", str(file), "--workers", "0", "--device", "cpu", "--json", *map(str, words)]
    )


def test_an_evaluation_has_the_options_of_its_task(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", f"coco:{folder / 'data'}", "--output", tmp_path)
    assert evaluate(folder, "retinanet", *data) == 0
    found = json.loads((tmp_path / "detections.json").read_text())
    middle = sorted(entry["score"] for entry in found)[len(found) // 2]  # of five digits
    assert evaluate(folder, "retinanet", *data, "--score", f"{middle + 5e-6:f}") == 0
    fewer = json.loads((tmp_path / "detections.json").read_text())
    assert fewer == [entry for entry in found if entry["score"] > middle]
    assert 0 < len(fewer) < len(found)
    assert evaluate(folder, "retinanet", *data, "--flip") == 2
    assert "--flip is no option of detection" in capsys.readouterr().err
