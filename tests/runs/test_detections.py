from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from convattn.runs.colours import class_colour
from convattn.runs.detections import DetectionPrediction, FoundObject, coco_results
from convattn.runs.rle import encode_mask

MASK = np.zeros((100, 200), bool)
MASK[10:40, 20:60] = True
CAT = FoundObject(name="cat", label=0, score=0.9, box=(20.0, 10.0, 60.0, 40.0))
DOG = FoundObject(name="dog\x1b", label=4, score=0.5, box=(30.0, 20.0, 100.0, 90.0))


def prediction(*objects: FoundObject) -> DetectionPrediction:
    return DetectionPrediction(path="a.jpg", size=(200, 100), objects=objects)


def masked(item: FoundObject, mask: np.ndarray = MASK) -> FoundObject:
    return FoundObject(
        name=item.name, label=item.label, score=item.score, box=item.box, mask=encode_mask(mask)
    )


def test_the_dictionary_survives_json() -> None:
    found = prediction(CAT, masked(DOG)).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["task"] == "detection"
    cat, dog = found["objects"]
    assert cat == {"name": "cat", "label": 0, "score": 0.9, "box": [20.0, 10.0, 60.0, 40.0]}
    assert dog["mask"] == encode_mask(MASK)


def test_the_cells_name_the_best_objects_in_one_cell() -> None:
    assert prediction(CAT, DOG).cells() == [r"cat 90.0%, dog\x1b 50.0%"]
    assert prediction().cells() == ["none"]
    assert prediction(*[CAT] * 9).cells()[0].endswith("and 4 more")


def test_objects_of_low_scores_are_neither_drawn_nor_in_the_cells() -> None:
    low = FoundObject(name="cow", label=2, score=0.1, box=(1.0, 1.0, 9.0, 9.0))
    assert prediction(CAT, low).cells() == ["cat 90.0%"]
    image = Image.new("RGB", (400, 200), "white")
    assert prediction(CAT, low).draw(image).tobytes() == prediction(CAT).draw(image).tobytes()
    assert len(prediction(CAT, low).to_dict()["objects"]) == 2
    both = DetectionPrediction(path="", size=(200, 100), objects=(CAT, low), shown_score=0.05)
    assert len(both.shown) == 2


def test_the_overlay_has_the_size_of_the_image() -> None:
    image = Image.new("RGB", (50, 25), "white")
    drawn = prediction(CAT).overlay(image)
    assert drawn.size == (50, 25)
    assert np.asarray(drawn).min() < 255
    assert np.asarray(image).min() == 255


def test_coco_results_have_width_and_height_and_the_ids_of_the_categories() -> None:
    (entry,) = coco_results(prediction(masked(CAT)), 139, category_ids=[17])
    assert entry == {
        "image_id": 139,
        "category_id": 17,
        "bbox": [20.0, 10.0, 40.0, 30.0],
        "score": 0.9,
        "segmentation": encode_mask(MASK),
    }
    (plain,) = coco_results(prediction(DOG), 1)
    assert plain["category_id"] == 5
    assert "segmentation" not in plain


def test_boxes_are_drawn_at_the_scale_of_the_given_image() -> None:
    drawn = np.asarray(prediction(CAT).draw(Image.new("RGB", (800, 400), "white")))
    assert drawn.shape[0] > 400  # a legend
    assert drawn.shape[1] == 800
    assert tuple(drawn[100, 80]) == class_colour(0)  # left line of the box at 20 * 4
    assert tuple(drawn[100, 160]) == (255, 255, 255)


def test_an_image_without_objects_is_drawn_without_a_legend() -> None:
    assert prediction().draw(Image.new("RGB", (400, 300))).size == (400, 300)


def test_masks_are_drawn_over_the_image() -> None:
    drawn = np.asarray(prediction(masked(CAT)).draw(Image.new("RGB", (400, 200), "white")))
    assert tuple(drawn[50, 80]) != (255, 255, 255)


def test_the_png_has_the_number_of_the_object_and_the_best_one_is_in_front() -> None:
    whole = np.ones((100, 200), bool)
    png = np.asarray(prediction(masked(CAT), masked(DOG, whole)).to_png())
    assert png.shape == (100, 200)
    assert png[20, 30] == 1
    assert png[90, 190] == 2
    assert np.asarray(prediction().to_png()).max() == 0
    low = FoundObject(name="cow", label=2, score=0.1, box=(1.0, 1.0, 9.0, 9.0))
    assert np.asarray(prediction(masked(CAT), masked(low, whole)).to_png()).max() == 1


def test_a_prediction_without_masks_names_the_methods_that_have_masks() -> None:
    with pytest.raises(ValueError, match=r"detection has no masks; .*mask_rcnn"):
        prediction(CAT).to_png()
