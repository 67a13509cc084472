from __future__ import annotations

import numpy as np

from convattn.runs.colours import class_colour, ink_on, to_lab


def test_the_colours_of_150_classes_differ_visibly() -> None:
    lab = to_lab(np.array([class_colour(number) for number in range(150)]))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1000 * np.eye(150)
    assert distance.min() > 12  # 2.3 is a just noticeable difference
    assert distance[:20, :20].min() > 30


def test_the_lightness_of_white_is_100_and_of_black_0() -> None:
    lab = to_lab(np.array([[255, 255, 255], [0, 0, 0]]))
    assert np.allclose(lab, [[100, 0, 0], [0, 0, 0]], atol=0.1)


def test_class_numbers_beyond_the_colours_have_a_colour() -> None:
    assert class_colour(255) == class_colour(0)


def test_text_is_black_on_light_colours_and_white_on_dark_ones() -> None:
    assert ink_on((250, 240, 120)) == (0, 0, 0)
    assert ink_on((40, 0, 120)) == (255, 255, 255)
