from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn.cli.prediction_files import CocoIds, Files, Row, as_json, image_ids
from convattn.data import find_inputs
from convattn.runs.detections import DetectionPrediction, FoundObject
from convattn.runs.predictions import ClassPrediction, Guess, Original, Prediction
from convattn.runs.rle import encode_mask
from convattn.runs.segmentations import SegmentationPrediction
from tests.data.class_folders import write_image

SIZE = (12, 10)


def original(folder: Path, name: str) -> Original:
    (item,) = find_inputs(write_image(folder / name)).items
    return Original(item, {"integer": None, "float": None})


def detection(folder: Path, name: str = "7.png", mask: bool = True) -> DetectionPrediction:
    encoded = encode_mask(np.ones(SIZE[::-1])) if mask else None
    cat = FoundObject(name="cat", label=2, score=0.5, box=(1.0, 2.0, 4.0, 8.0), mask=encoded)
    return DetectionPrediction(
        path=str(folder / name), size=SIZE, objects=(cat,), original=original(folder, name)
    )


def segmentation(folder: Path, name: str = "a.png") -> SegmentationPrediction:
    return SegmentationPrediction(
        path=str(folder / name),
        size=SIZE,
        original=original(folder, name),
        class_names=("sky", "road"),
        mask=np.eye(SIZE[1], SIZE[0], dtype=np.uint8),
    )


def test_the_json_of_a_detection_has_coco_results_with_the_ids_of_the_images(
    tmp_path: Path,
) -> None:
    rows = [Row.of(detection(tmp_path, name)) for name in ("000139.png", "7.png")]
    found = as_json(rows, [], ["a note"])
    assert json.loads(json.dumps(found)) == found
    assert [image["image_id"] for image in found["images"]] == [139, 7]
    assert [entry["image_id"] for entry in found["results"]] == [139, 7]
    assert found["results"][0]["bbox"] == [1.0, 2.0, 3.0, 6.0]
    assert found["results"][0]["segmentation"]["size"] == [10, 12]
    assert found["notes"] == ["a note"]


def test_the_json_of_other_tasks_has_no_results(tmp_path: Path) -> None:
    assert "results" not in as_json([Row.of(segmentation(tmp_path))], [], [])


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a/000000000139.jpg", "a/5.jpg"], [139, 5]),
        (["a/5.jpg", "b/005.jpg"], [0, 1]),
        (["5.jpg", "cat.jpg"], [0, 1]),
        (["²3.jpg", "4.jpg"], [0, 1]),
        ([], []),
    ],
)
def test_image_ids_are_the_numbers_of_the_files_or_running_numbers(
    names: list[str], ids: list[int]
) -> None:
    assert image_ids(names) == ids


def write_ids(path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 42, "file_name": "sub/7.png"}, {"id": 5, "file_name": "b.png"}],
        "categories": [
            {"id": 90, "name": "cat"},
            {"id": 1, "name": "sky"},
            {"id": 17, "name": "b"},
        ],
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_the_ids_of_an_annotation_file_are_those_of_the_results(tmp_path: Path) -> None:
    ids = CocoIds.read(write_ids(tmp_path / "a.json"), ("sky", "b", "cat"))
    rows = [Row.of(detection(tmp_path, name)) for name in ("7.png", "other.png")]
    found = as_json(rows, [], [], ids)
    (entry,) = found["results"]
    assert (entry["image_id"], entry["category_id"]) == (42, 90)
    assert [image["image_id"] for image in found["images"]] == [42, None]
    assert found["notes"] == ["1 image not in the file of --ids: no results of it"]


def test_a_file_without_ids_is_an_error_that_says_what_it_lacks(tmp_path: Path) -> None:
    path = write_ids(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a.json has no category 'cta'.*did you mean 'cat'"):
        CocoIds.read(path, ("cta",))
    for content in ("[", "[1]", "{}", '{"images": [1], "categories": []}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a.json is no annotation file in COCO's form"):
            CocoIds.read(path, ("cat",))


def test_each_image_gets_a_drawing_and_a_mask_of_the_same_name(tmp_path: Path) -> None:
    output, masks = tmp_path / "output", tmp_path / "masks"
    for _ in range(2):  # earlier results are replaced
        files = Files(str(output), str(masks))
        for name in ("one", "two"):
            files.add(segmentation(tmp_path / name))
        files.finish({"images": []})
        for folder in (output, masks):
            assert {path.name for path in folder.iterdir()} == {
                "a.png",
                "a-2.png",
                "predictions.json",
            }
    assert np.array_equal(np.asarray(Image.open(masks / "a.png")), np.eye(10, 12))


def test_objects_with_masks_have_a_png(tmp_path: Path) -> None:
    files = Files(None, str(tmp_path / "masks"))
    files.add(detection(tmp_path / "images"))
    assert np.asarray(Image.open(tmp_path / "masks" / "7.png")).min() == 1


def classes() -> Prediction:
    return ClassPrediction(path="a.png", size=SIZE, guesses=(Guess("cat", 1.0),))


def test_masks_of_a_task_without_masks_are_an_error(tmp_path: Path) -> None:
    files = Files(None, str(tmp_path / "masks"))
    with pytest.raises(ValueError, match="a prediction of classification has no masks"):
        files.add(classes())
    with pytest.raises(ValueError, match="a prediction of detection has no masks"):
        files.add(detection(tmp_path / "images", mask=False))


def test_a_mask_folder_with_other_files_and_one_folder_for_both_are_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "truth.png").touch()
    with pytest.raises(ValueError, match=r"--masks .* holds other files"):
        Files(None, str(tmp_path))
    with pytest.raises(ValueError, match="--output and --masks are both"):
        Files(str(tmp_path / "new"), str(tmp_path / "." / "new"))


def test_a_drawing_that_fails_is_raised_after_the_json_is_written(tmp_path: Path) -> None:
    made = detection(tmp_path / "images")
    files = Files(str(tmp_path / "output"), None)
    (tmp_path / "images" / "7.png").unlink()
    files.add(made)
    with pytest.raises(ValueError, match=r"cannot read the image .*7\.png"):
        files.finish({"images": []})
    assert (tmp_path / "output" / "predictions.json").is_file()


def test_a_broken_image_has_a_row_without_values_and_no_files(tmp_path: Path) -> None:
    failed = DetectionPrediction(path="a.png", size=(0, 0), error="the file is cut off")
    assert Row.of(failed) == Row("a.png", "the file is cut off")
    files = Files(str(tmp_path / "output"), None)
    files.add(failed)
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["predictions.json"]


def test_a_folder_of_an_interrupted_prediction_is_used_again(tmp_path: Path) -> None:
    Files(str(tmp_path / "output"), None).add(detection(tmp_path / "images"))
    found = json.loads((tmp_path / "output" / "predictions.json").read_text())
    assert found["notes"] == ["this prediction was not finished"]
    Files(str(tmp_path / "output"), None)
