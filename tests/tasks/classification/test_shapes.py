from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convattn.data import Preprocess, eval_transform
from convattn.tasks.classification.shapes import shape_notes


def made(size: int = 224, **changes: object) -> Preprocess:
    values = {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes}
    return Preprocess(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "crop_pct", "kept"),
    [
        ((1600, 400), 1.0, "25%"),
        ((400, 1600), 1.0, "25%"),
        ((1600, 400), 0.9, "20%"),
        ((1240, 1754), 1.0, "71%"),  # a page of A4
    ],
)
def test_a_crop_that_cuts_most_images_is_told(
    size: tuple[int, int], crop_pct: float, kept: str
) -> None:
    (note,) = shape_notes(made(crop_pct=crop_pct), size)
    assert f"the middle {kept} of a typical one ({size[0]} x {size[1]} pixels)" in note
    assert "crop_mode=squash" in note
    assert "crop_mode=border" in note


@pytest.mark.parametrize("size", [(400, 400), (640, 480), (480, 640), None])
def test_usual_photos_need_no_words(size: tuple[int, int] | None) -> None:
    assert shape_notes(made(crop_pct=0.875), size) == []


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_modes_that_keep_all_need_no_words(mode: str) -> None:
    assert shape_notes(made(crop_mode=mode), (1600, 400)) == []


def test_long_images_for_a_long_input_need_no_words() -> None:
    long = Preprocess(input_size=(3, 64, 256), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert shape_notes(long, (1600, 400)) == []
    assert "25%" in shape_notes(long, (400, 400))[0]


def test_very_small_images_are_told() -> None:
    assert "has 32 x 32 pixels and is enlarged to 224 x 224" in shape_notes(made(), (32, 32))[0]
    assert shape_notes(made(32), (28, 28)) == []


@pytest.mark.parametrize(
    ("mode", "crop_pct", "seen"),
    [("center", 1.0, 0.25), ("center", 0.8, 0.2), ("squash", 1.0, 1.0), ("border", 1.0, 1.0)],
)
def test_evaluation_sees_what_the_note_says(mode: str, crop_pct: float, seen: float) -> None:
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (100, 1))
    preprocess = Preprocess((1, 64, 64), (0.0,), (1.0,), crop_mode=mode, crop_pct=crop_pct)
    middle = eval_transform(preprocess)(Image.fromarray(ramp))[0, 32]
    assert (middle.max() - middle.min()).item() == pytest.approx(seen, abs=0.02)
