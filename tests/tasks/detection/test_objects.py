from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from convattn.runs.rle import decode_mask
from convattn.tasks.detection.objects import found_objects, kept_found


def pasted(box: list[float], mask: Tensor, size: tuple[int, int] = (60, 50)) -> np.ndarray:
    """The mask of one object in an image of a width and a height."""
    objects = {
        "boxes": torch.tensor([box], dtype=torch.float32),
        "scores": torch.ones(1),
        "labels": torch.zeros(1, dtype=torch.int64),
        "masks": mask[None, None],
    }
    return decode_mask(kept_found(found_objects(objects, size[::-1], size))["masks"][0])


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((50, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    "box", [(10, 10, 20, 20), (0, 0, 3, 4), (20, 7, 60, 50), (0, 0, 60, 50), (5, 5, 6, 45)]
)
def test_full_mask_is_the_box(box):
    found = pasted([float(v) for v in box], torch.ones(28, 28))
    assert np.array_equal(found, rectangle(*box))


def test_cells_of_a_pixel_each_are_the_mask():
    cells = torch.rand(28, 28)
    found = pasted([7.0, 11, 35, 39], cells)
    assert np.array_equal(found[11:39, 7:35], (cells >= 0.5).numpy())
    assert found.sum() == (cells >= 0.5).sum()


def test_half_a_mask_is_half_of_the_box():
    cells = torch.zeros(28, 28)
    cells[:, :14] = 1
    assert np.array_equal(pasted([10.0, 10, 20, 20], cells), rectangle(10, 10, 15, 20))


def test_pixels_whose_centres_are_outside_of_the_box_are_not_the_object():
    found = pasted([10.6, 10.4, 20.6, 20.4], torch.ones(28, 28))
    assert np.array_equal(found, rectangle(11, 10, 21, 20))
    assert not pasted([10.6, 10, 11.4, 20], torch.ones(28, 28)).any()
    assert not pasted([10.7, 10, 10.7, 20], torch.ones(28, 28)).any()


def test_pixels_are_not_rounded_where_bfloat16_is_the_default():
    torch.set_default_dtype(torch.bfloat16)  # as in a training with precision=bf16-true
    try:
        found = pasted([401.0, 3, 404, 6], torch.ones(28, 28, dtype=torch.float32), (500, 10))
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.flatnonzero(found.any(0)).tolist() == [401, 402, 403]
