from __future__ import annotations

import numpy as np
import torch

from convattn.explain.slot_pictures import input_picture, slot_colours, slot_picture


def test_colours_of_slots_differ() -> None:
    colours = slot_colours(100)
    assert colours.shape == (100, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    distances = torch.cdist(colours[:64], colours[:64]) + torch.eye(64)
    assert distances.min() > 0.02
    assert (colours[1:] - colours[:-1]).norm(dim=1).min() > 0.25


def test_every_pixel_has_the_colour_of_the_slot_with_the_largest_weight() -> None:
    maps = torch.zeros(2, 4, 8)
    maps[0, :, :4] = 1
    maps[1, :, 4:] = 1
    pixels = np.asarray(slot_picture(maps, torch.zeros(1, 16, 32), size=64)) / 255
    assert pixels.shape == (32, 64, 3)
    left, right = pixels[:, :32], pixels[:, 32:]
    assert np.ptp(left, axis=(0, 1)).max() == 0
    assert np.ptp(right, axis=(0, 1)).max() == 0
    # the image is black, so what differs is the slots' colours alone
    towards = slot_colours(2).numpy()
    np.testing.assert_allclose(left[0, 0] - right[0, 0], 0.6 * (towards[0] - towards[1]), atol=0.01)


def test_the_input_is_shown_from_its_darkest_to_its_brightest_value() -> None:
    x = torch.linspace(-2.1, 2.6, 3 * 4 * 4).reshape(3, 4, 4)
    pixels = np.asarray(input_picture(x, size=8))
    assert pixels.shape == (8, 8, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_flat_grey_input_has_a_picture() -> None:
    picture = input_picture(torch.full((1, 5, 3), 0.5), size=10)
    assert picture.size == (6, 10)
    assert picture.mode == "RGB"
