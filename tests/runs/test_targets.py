from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.runs.colours import class_colour
from convattn.runs.segmentations import class_legend
from convattn.runs.targets import counts_legend, draw_target, target_counts, target_objects

NAMES = ("cat", "dog", "кот")


def objects(**more: Any) -> dict[str, Any]:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 20.0], [0.0, 0.0, 100.0, 50.0]])
    return {"boxes": boxes, "labels": torch.tensor([2, 0]), **more}


def test_boxes_are_scaled_to_the_picture_and_small_objects_are_drawn_last() -> None:
    large, small = target_objects(objects(), NAMES, (100, 50), (200, 100))
    assert (large.text, large.box) == ("cat", (0.0, 0.0, 200.0, 100.0))
    assert (small.text, small.number, small.box) == ("кот", 2, (20.0, 20.0, 40.0, 40.0))


def test_crowds_are_dashed_and_masks_have_the_size_of_the_picture() -> None:
    masks = torch.zeros(2, 50, 100, dtype=torch.uint8)
    masks[0, 10:20, 10:20] = 1
    target = objects(masks=masks, crowd=torch.tensor([True, False]))
    large, small = target_objects(target, NAMES, (100, 50), (200, 100))
    assert (large.dashed, small.dashed) == (False, True)
    assert small.mask is not None
    assert small.mask.shape == (100, 200)
    assert small.mask.sum() == 400


@pytest.mark.parametrize(
    "target",
    [objects(), torch.tensor([[0, 1]]), 2, objects(boxes=torch.zeros(0, 4), labels=torch.zeros(0))],
)
def test_any_target_is_drawn_at_the_size_of_the_picture(target: Any) -> None:
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_target(image, target, NAMES, (100, 50))
    assert drawn.size == (200, 100)
    is_empty = isinstance(target, dict) and not len(target["labels"])
    assert (np.asarray(drawn).min() == 255) == is_empty


def test_a_true_class_has_no_probability_and_no_line() -> None:
    drawn = np.asarray(draw_target(Image.new("RGB", (400, 300), "white"), 0, NAMES, (400, 300)))
    assert drawn[:20, :60].min() < 90
    assert (drawn[30:] == 255).all()
    assert not (drawn == (88, 166, 255)).all(-1).any()


def test_counts_are_objects_pixels_or_one_image() -> None:
    assert target_counts(objects()) == {0: 1, 2: 1}
    assert target_counts(torch.tensor([[1, 1], [0, 255]], dtype=torch.uint8)) == {0: 1, 1: 2}
    assert target_counts(2) == {2: 1}


def test_the_legend_has_the_classes_that_occur() -> None:
    (entry,) = counts_legend({2: 3, 1: 0}, NAMES)
    assert (entry.colour, entry.name) == (class_colour(2), "кот")


def test_the_pixels_of_a_background_keep_the_colours_of_the_image() -> None:
    image, names = Image.new("RGB", (100, 50), (9, 99, 199)), ("Background", "cat")
    target = torch.zeros(50, 100, dtype=torch.uint8)
    target[20:40, 20:40] = 1
    drawn = np.asarray(draw_target(image, target, names, image.size))
    assert (drawn[:15] == (9, 99, 199)).all()
    assert (drawn[25:35, 25:35] != (9, 99, 199)).all()
    assert [entry.name for entry in counts_legend(target_counts(target), names)] == ["cat"]
    assert [entry.name for entry in class_legend(target.numpy(), names)] == ["cat"]
