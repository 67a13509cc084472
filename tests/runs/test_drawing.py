from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convattn.runs.colours import class_colour
from convattn.runs.drawing import (
    Drawn,
    LegendEntry,
    draw_classes,
    draw_objects,
    enlarged,
    palette_image,
    resized_mask,
    side_by_side,
    with_legend,
)

SIZES = [(1, 1), (3, 200), (100, 66), (640, 480), (2000, 1500)]


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == colour).all(-1).sum())


@pytest.mark.parametrize("size", SIZES)
def test_objects_are_drawn_at_any_size_and_the_image_stays_as_it_is(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (128, 128, 128))
    box = (0.0, 0.0, size[0] * 0.7, size[1] * 0.7)
    mask = np.ones(size[::-1], bool)
    drawn = draw_objects(image, [Drawn(number=3, text="кот 50%", box=box, mask=mask)])
    assert drawn.size == size
    assert has_colour(drawn, (128, 128, 128)) == 0
    assert has_colour(image, (128, 128, 128)) == size[0] * size[1]


def test_a_box_is_a_line_around_its_pixels() -> None:
    image = Image.new("RGB", (400, 300), "white")
    drawn = draw_objects(image, [Drawn(number=2, text="", box=(50.0, 60.0, 200.0, 150.0))])
    changed = np.argwhere((np.asarray(drawn) != 255).any(-1))
    assert np.abs(changed.min(0) - (60, 50)).max() <= 1
    assert np.abs(changed.max(0) - (150, 200)).max() <= 1
    assert drawn.getpixel((125, 100)) == (255, 255, 255)
    assert drawn.getpixel((125, 60)) == class_colour(2)


def test_a_dashed_box_has_gaps() -> None:
    image = Image.new("RGB", (400, 300), "white")
    item = Drawn(number=2, text="", box=(50.0, 60.0, 250.0, 200.0), dashed=True)
    top = np.asarray(draw_objects(image, [item]))[60, 50:250]
    coloured = (top == class_colour(2)).all(-1)
    assert 0.3 < coloured.mean() < 0.8


def test_a_mask_is_translucent_with_an_opaque_outline() -> None:
    image = Image.new("RGB", (400, 300), "white")
    mask = np.zeros((300, 400), bool)
    mask[50:150, 100:200] = True
    drawn = draw_objects(image, [Drawn(number=1, text="", box=(0.0, 0.0, 1.0, 1.0), mask=mask)])
    assert drawn.getpixel((100, 100)) == class_colour(1)
    expected = 0.55 * 255 + 0.45 * np.array(class_colour(1))
    assert np.abs(np.asarray(drawn)[100, 150] - expected).max() <= 1
    assert drawn.getpixel((220, 100)) == (255, 255, 255)


def test_labels_of_objects_at_one_place_do_not_cover_each_other() -> None:
    image = Image.new("RGB", (400, 300), "white")
    box = (50.0, 100.0, 250.0, 200.0)
    drawn = draw_objects(image, [Drawn(number=n, text=f"class {n}", box=box) for n in (0, 1, 2)])
    assert all(has_colour(drawn, class_colour(number)) > 300 for number in (0, 1, 2))


def test_a_label_stays_within_the_image() -> None:
    image = Image.new("RGB", (300, 200), "white")
    item = Drawn(number=0, text="person 99%", box=(290.0, 0.0, 300.0, 10.0))
    assert has_colour(draw_objects(image, [item]), class_colour(0)) > 500


@pytest.mark.parametrize("size", SIZES)
def test_classes_have_their_colours_and_ignored_pixels_are_dark(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    for number in (0, 7):
        drawn = draw_classes(image, np.full(size[::-1], number, np.uint8))
        share = np.asarray(drawn)[0, 0] - np.array(class_colour(number))
        assert (share >= 0).all()
        assert (np.asarray(drawn) == np.asarray(drawn)[0, 0]).all()
    assert np.asarray(draw_classes(image, np.full(size[::-1], 255, np.uint8))).max() < 128


def test_a_line_separates_two_classes() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[:, 150:] = 1
    drawn = draw_classes(Image.new("RGB", (300, 200), "black"), mask)
    white = (np.asarray(drawn) == 255).all(-1)
    assert set(np.flatnonzero(white[100])) == {149, 150}


def test_a_legend_is_below_the_image_and_shows_each_colour() -> None:
    image = Image.new("RGB", (400, 100), "black")
    entries = [LegendEntry(class_colour(n), f"class {n}") for n in range(30)]
    picture = with_legend(image, entries)
    assert picture.width == 400
    assert picture.crop((0, 0, 400, 100)).tobytes() == image.tobytes()
    strip = picture.crop((0, 100, *picture.size))
    assert all(has_colour(strip, entry.colour) > 30 for entry in entries)
    assert with_legend(image, []) is image


def test_a_legend_shortens_long_names_and_keeps_their_amounts() -> None:
    assert LegendEntry((0, 0, 0), "a" * 200, "(3)").text.endswith("a… (3)")
    picture = with_legend(Image.new("RGB", (10, 10)), [LegendEntry((9, 9, 9), "a" * 200, "(3)")])
    assert 150 < picture.width < 400


def test_a_legend_of_hundreds_of_classes_is_not_endless() -> None:
    entries = [LegendEntry(class_colour(n), f"class {n}") for n in range(250)]
    assert with_legend(Image.new("RGB", (640, 480)), entries).height < 900


def test_pictures_side_by_side_have_one_height() -> None:
    pictures = [("truth", Image.new("RGB", (300, 200))), ("x" * 99, Image.new("RGB", (60, 40)))]
    row = side_by_side(pictures)
    assert row.width == 300 + 300 + 6
    assert row.height == 200 + 20


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    assert enlarged(Image.new("L", (100, 66))).size == (300, 198)
    assert enlarged(Image.new("L", (640, 480))).size == (640, 480)


def test_a_palette_image_keeps_class_numbers_and_has_the_colours_of_the_classes() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = palette_image(mask)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    assert image.convert("RGB").getpixel((3, 0)) == class_colour(3)


def test_a_mask_is_resized_without_new_values() -> None:
    mask = np.array([[0, 200], [7, 255]], np.uint8)
    resized = resized_mask(mask, (6, 4))
    assert resized.shape == (4, 6)
    assert set(np.unique(resized)) == {0, 7, 200, 255}
    assert resized_mask(mask > 10, (6, 4)).dtype == bool
