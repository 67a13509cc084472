from __future__ import annotations

from typing import Any

import pytest
import torch

from convattn.tasks.detection.models.targets import covered
from tests.tasks.detection.models.scenes import METHODS, SIZES, images, small, target, targets

EVERYWHERE = [-1e4, -1e4, 1e4, 1e4]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "box", [[5.0, 5, 5, 20], [5, 5, 20, 5], [20, 5, 10, 20], [float("nan"), 0, 5, 5]]
)
def test_box_without_area_is_an_error_that_names_the_image(method, box):
    every = targets()
    every[1] = target([[1, 1, 9, 9], [1, 1, 9, 9]], [0, 1], SIZES[1])
    every[1]["boxes"][1] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"image 1 of the batch \(image_id 17\) .* has no area"):
        small(method)(images(), every)


def change(key: str, value: Any) -> list[dict[str, Any]]:
    every = targets()
    if value is None:
        del every[0][key]
    else:
        every[0][key] = value
    return every


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (change("labels", torch.tensor([0, 3])), "image 0 .* the label 3, .* from 0 to 2"),
        (change("labels", torch.tensor([-1, 0])), "image 0 .* the label -1"),
        (change("labels", torch.tensor([1])), r"boxes of shape \(2, 4\), and its 1 labels"),
        (change("labels", None), "the target of image 0 .* has no 'labels'"),
        (change("masks", None), "the target of image 0 .* has no 'masks'"),
        (change("masks", torch.zeros(1, 64, 90)), r"masks of shape \(1, 64, 90\)"),
        (change("masks", torch.zeros(2, 65, 90)), "image 0 .* masks of 65 x 90 .* of 64 x 96"),
        (change("crowd", torch.zeros(1)), r"crowd of shape \(1,\), and its 2 labels need \(2,\)"),
        (targets()[:1], "a target for each image, got 1 for 2"),
    ],
)
def test_targets_that_do_not_fit_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        small("mask_rcnn")(images(), wrong)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(64, 96)], "a size for each image, got 1 for 2"),
        ([(64, 96), (65, 96)], r"input of 64 x 96 pixels, got \(65, 96\)"),
        ([(0, 96), (64, 96)], r"got \(0, 96\)"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        small("retinanet").eval()(images(), sizes=sizes)


def test_boxes_may_have_another_dtype_and_masks_may_be_boolean():
    model = small("mask_rcnn")
    every = targets()
    every[0]["boxes"] = torch.tensor([[4, 4, 40, 40], [30, 20, 60, 60]])
    every[0]["masks"] = every[0]["masks"].bool()
    every[0]["labels"] = every[0]["labels"].int()
    del every[0]["crowd"]
    every[1]["boxes"] = torch.zeros(0, 4, dtype=torch.bfloat16)
    losses = model(images(), every)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_covered_boxes_have_more_than_half_of_their_area_in_a_crowd():
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [6, 0, 16, 10], [50, 50, 60, 60]])
    crowd = torch.tensor([[0.0, 0, 10, 20], [55, 0, 100, 100]])
    assert covered(boxes, crowd).tolist() == [True, True, False, False]
    assert covered(boxes, crowd[:0]).tolist() == [False] * 4


@pytest.mark.parametrize("method", METHODS)
def test_crowd_is_neither_an_object_nor_background(method):
    model = small(method)
    every = [target([EVERYWHERE], [1], size) for size in SIZES]
    for each in every:
        each["crowd"][:] = True
    losses = model(images(), every, SIZES)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    one_region = {"cls", "cls_1", "cls_2", "cls_3"} if method != "retinanet" else set()
    for name, loss in losses.items():
        assert torch.isfinite(loss)
        if name not in one_region:  # a region of each image stays, as the mean of none is NaN
            assert loss == 0, name


@pytest.mark.parametrize("method", ["retinanet", "faster_rcnn"])
def test_object_inside_a_crowd_is_learnt(method):
    model = small(method)
    every = [target([[8, 8, 40, 40], EVERYWHERE], [1, 0], size) for size in SIZES]
    for each in every:
        each["crowd"][1] = True
    losses = model(images(), every, SIZES)
    assert losses["box"] > 0
    assert losses["cls"] > 0
