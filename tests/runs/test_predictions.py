from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from convattn.data import find_inputs
from convattn.runs.predictions import ClassPrediction, Guess, Original
from tests.data.class_folders import write_image

RANGES = {"integer": None, "float": None}


def prediction(label: str = "cat", probability: float = 0.75) -> ClassPrediction:
    guesses = (Guess(label, probability), Guess("dog", 1 - probability))
    return ClassPrediction(path="a.png", size=(12, 10), guesses=guesses)


def failed() -> ClassPrediction:
    return ClassPrediction(path="a\n.png", size=(0, 0), error="the file is cut off")


def test_a_classification_names_the_best_class_first() -> None:
    assert (prediction().label, prediction().probability) == ("cat", 0.75)
    assert prediction("a\x1b").cells() == [r"a\x1b 75.0%", "dog 25.0%"]


def test_the_dictionary_survives_json() -> None:
    found = prediction("猫\udce9").to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found == {
        "path": "a.png",
        "task": "classification",
        "size": [12, 10],
        "error": None,
        "guesses": [
            {"name": "猫\udce9", "probability": 0.75},
            {"name": "dog", "probability": 0.25},
        ],
    }


def test_a_failure_has_a_reason_and_no_result() -> None:
    assert failed().to_dict() == {
        "path": "a\n.png",
        "task": "classification",
        "size": [0, 0],
        "error": "the file is cut off",
    }
    label, probability = (lambda: failed().label), (lambda: failed().probability)
    for use in (label, probability, failed().cells, failed().draw):
        with pytest.raises(ValueError, match=r"no prediction for a\\n.png: the file is cut off"):
            use()


@pytest.mark.parametrize("size", [(640, 480), (96, 96), (32, 32), (300, 40), (12, 10), (1, 1)])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_the_drawing_has_the_size_of_the_image_and_changes_its_pixels(
    size: tuple[int, int], mode: str
) -> None:
    image = Image.new("RGB", size, (128, 128, 128)).convert(mode)
    before = image.copy()
    drawn = prediction().draw(image)
    assert (drawn.mode, drawn.size) == ("RGB", size)
    assert ImageChops.difference(drawn, image.convert("RGB")).getbbox() is not None
    assert ImageChops.difference(image.convert("RGB"), before.convert("RGB")).getbbox() is None


@pytest.mark.parametrize("background", [0, 128, 255])
def test_the_label_stands_out_from_any_background(background: int) -> None:
    drawn = np.asarray(prediction("W" * 40).draw(Image.new("L", (400, 300), background)))
    bar = drawn[:15].max(-1).astype(int)
    assert bar.max() > 240  # letters
    assert np.median(bar) < 90


def test_the_line_is_as_long_as_the_probability() -> None:
    for probability in (0.25, 0.5, 1.0):
        drawn = prediction(probability=probability).draw(Image.new("RGB", (400, 300), "white"))
        blue = (np.asarray(drawn) == (88, 166, 255)).all(-1).sum(1)
        assert blue.max() == round(400 * probability)


def test_labels_differ_in_letters_of_many_languages() -> None:
    image = Image.new("RGB", (300, 200))
    drawn = {name: prediction(name).draw(image).tobytes() for name in ("Größe", "Grüße", "кот")}
    assert len({*drawn.values()}) == 3


def test_the_original_is_read_again_for_the_drawing(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    (item,) = find_inputs(path).items
    made = ClassPrediction(
        path=str(path), size=(12, 10), guesses=(Guess("a", 1.0),), original=Original(item, RANGES)
    )
    expected = made.draw(Image.open(path)).tobytes()
    assert made.draw().tobytes() == expected
    assert pickle.loads(pickle.dumps(made)).draw().tobytes() == expected
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png: there is no such file"):
        made.draw()


def test_an_image_that_was_not_kept_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"a\.png is not stored.*draw\(image\)"):
        prediction().draw()
