from __future__ import annotations

import json
import pickle

import numpy as np
from PIL import Image

from convattn.runs.colours import class_colour
from convattn.runs.segmentations import SegmentationPrediction

NAMES = ("sky", "road", "кот\x1b", "sign")


def prediction(changed: int = 1) -> SegmentationPrediction:
    mask = np.zeros((100, 200), np.uint8)
    mask[25:] = changed
    mask[:, 190:] = 3
    return SegmentationPrediction(path="a.png", size=(200, 100), class_names=NAMES, mask=mask)


def test_the_dictionary_has_the_share_of_the_pixels_of_each_class_and_no_pixels() -> None:
    found = prediction().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["classes"] == [
        {"name": "road", "label": 1, "share": 0.7125},
        {"name": "sky", "label": 0, "share": 0.2375},
        {"name": "sign", "label": 3, "share": 0.05},
    ]
    assert prediction().classes == {"road": 0.7125, "sky": 0.2375, "sign": 0.05}


def test_the_cells_name_the_largest_classes_in_one_cell() -> None:
    assert prediction(2).cells() == [r"кот\x1b 71.2%, sky 23.8%, sign 5.0%"]


def test_the_png_has_the_class_numbers() -> None:
    png = prediction().to_png()
    assert png.mode == "P"
    assert np.array_equal(np.asarray(png), prediction().mask)
    assert png.convert("RGB").getpixel((0, 0)) == class_colour(0)


def test_the_mask_is_drawn_over_an_image_of_another_size_with_a_legend() -> None:
    drawn = prediction().draw(Image.new("RGB", (800, 400), "white"))
    assert drawn.width == 800
    assert drawn.height > 400
    pixels = np.asarray(drawn)
    assert not np.array_equal(pixels[50, 50], pixels[300, 50])
    strip = pixels[400:].reshape(-1, 3).tolist()
    assert all(list(class_colour(number)) in strip for number in (0, 1, 3))
    assert list(class_colour(2)) not in strip


def test_predictions_are_equal_if_their_pixels_are() -> None:
    assert prediction() == pickle.loads(pickle.dumps(prediction()))
    assert prediction() != prediction(2)
    assert hash(prediction()) == hash(prediction())


def test_a_failure_has_no_classes() -> None:
    failed = SegmentationPrediction(path="a.png", size=(0, 0), error="the file is cut off")
    assert "classes" not in failed.to_dict()
