from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convattn.runs.drawing import LegendEntry
from convattn.runs.sheets import SIDE, Tile, blank, contact_sheet, fitted


@pytest.mark.parametrize("size", [(1, 1), (384, 384), (4000, 10), (10, 4000)])
def test_pictures_fit_a_tile(size: tuple[int, int]) -> None:
    assert max(fitted(size)) == SIDE
    assert min(fitted(size)) >= 1


def test_a_sheet_has_all_pictures_captions_and_a_legend() -> None:
    colours = [(number * 12, 200, 90) for number in range(16)]
    tiles = [Tile(Image.new("RGB", (SIDE, 200), c), ("a.jpg", "3 x 4")) for c in colours]
    sheet = contact_sheet(tiles, [LegendEntry((255, 0, 0), "cat")])
    pixels = np.asarray(sheet)
    for colour in colours:
        assert (pixels == colour).all(-1).sum() == SIDE * 200
    assert (pixels == (255, 0, 0)).all(-1).any()
    assert sheet.height > contact_sheet(tiles, []).height


def test_a_sheet_of_few_pictures_is_narrow() -> None:
    assert contact_sheet([Tile(Image.new("RGB", (SIDE, 10)), ())], []).width < 2 * SIDE


def test_a_reason_of_any_length_is_written_in_the_place_of_an_image() -> None:
    picture = np.asarray(blank("the image is missing " * 30 + "x" * 500 + "\x1b"))
    assert (picture < 100).any()
