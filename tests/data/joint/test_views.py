"""Views of images, boxes and masks: all three show the same place."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from convattn.data.joint.views import View, whole

PIXELS = torch.arange(24).reshape(1, 4, 6).to(torch.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_shows_the_same_pixels_of_image_and_mask(flip: bool) -> None:
    view = View((4, 6), (1, 2, 3, 4), flip)
    image = view.image(Image(PIXELS), InterpolationMode.BILINEAR)
    mask = view.mask(Mask(PIXELS))
    assert image.shape == (1, *view.canvas) == (1, 3, 4)
    assert torch.equal(mask, image)
    assert image[0, 0].tolist() == ([11, 10, 9, 8] if flip else [8, 9, 10, 11])


def test_a_view_can_enlarge() -> None:
    mask = View((8, 12), (2, 4, 4, 4)).mask(Mask(PIXELS))
    assert mask[0, 0].tolist() == [8, 8, 9, 9]
    assert mask[0, :, 0].tolist() == [8, 8, 14, 14]


@pytest.mark.parametrize(("flip", "expected"), [(False, [0, 0, 8, 3]), (True, [2, 0, 10, 3])])
def test_boxes_are_scaled_moved_and_cut_off(flip: bool, expected: list[float]) -> None:
    boxes = BoundingBoxes(torch.tensor([[1.0, 0, 6, 2]]), format="XYXY", canvas_size=(4, 6))
    found = View((8, 12), (1, 4, 5, 10), flip).boxes(boxes)
    assert found[0].tolist() == expected
    assert found.canvas_size == (5, 10)


def test_the_whole_image_keeps_its_values_at_the_same_size() -> None:
    assert torch.equal(whole((4, 6)).mask(Mask(PIXELS)), PIXELS)
