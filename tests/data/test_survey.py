from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data import BrokenImageError, Survey, find_broken, open_dataset
from tests.data.class_folders import write_classes, write_image
from tests.data.deep_files import write_png, write_tiff


def ramp(high: float, kind: str, low: float = 0) -> np.ndarray:
    return np.linspace(low, high, 30).reshape(5, 6).astype(kind)


def write_deep(root: Path, *highs: float, kind: str = "u2", low: float = 0) -> Path:
    """Write two classes with an image for each highest value."""
    for name in ("a", "b"):
        for number, high in enumerate(highs):
            write_tiff(root / name / f"{number}.tif", ramp(high, kind, low))
    return root


def brightest(images) -> list[int]:
    return sorted({int(np.asarray(images.image(i)).max()) for i in range(len(images))})


def test_a_dark_and_a_bright_image_have_one_range(tmp_path: Path) -> None:
    source = open_dataset(f"folder:{write_deep(tmp_path, 2, 255, kind='f4')}", val_fraction=0.5)
    assert source.value_range == (0, 255)
    assert {*brightest(source.train), *brightest(source.val)} == {2, 255}


@pytest.mark.parametrize("decode", [True, False])
def test_one_bright_pixel_in_large_images_counts(tmp_path: Path, decode: bool) -> None:
    """The spot is one pixel of 65,536, of which a sample alone would not hold any."""
    survey = Survey()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(100, 200, (256, 256)).astype(np.uint16)
        pixels[7, 9] = 3500 if number == 3 else 100
        write_tiff(tmp_path / f"{number}.tif", pixels)
    assert find_broken(sorted(map(str, tmp_path.iterdir())), survey, decode=decode) == []
    assert survey.decide("here") == (0, 4095)
    note = survey.note((0, 4095), given=False)
    assert "values 100 to 3500 are taken as 0 to 4095 (12 bits)" in note
    assert "nearly all their values, from 100 to 199, fill only 2.42% of it" in note
    assert "less than 0.01% of their values become white" in survey.note((0, 255), given=True)


def test_codes_of_missing_data_do_not_set_the_range_and_are_noted(tmp_path: Path) -> None:
    pixels = np.arange(4000, dtype=np.uint16).reshape(50, 80)
    pixels[0, :40] = 65535
    survey = Survey()
    find_broken([str(write_tiff(tmp_path / "1.tif", pixels))], survey)
    assert survey.decide("here") == (0, 4095)
    note = survey.note((0, 4095), given=False)
    assert "values 40 to 65535 are taken as 0 to 4095 (12 bits)" in note
    assert note.endswith("% of their values become white")


def test_a_held_out_folder_has_the_range_of_the_data_set(tmp_path: Path) -> None:
    write_deep(tmp_path / "train", 4095, 4000)
    write_deep(tmp_path / "val", 200, 255)
    source = open_dataset(f"folder:{tmp_path}")
    assert source.value_range == (0, 4095)
    assert brightest(source.val) == [12, 16]


@pytest.mark.parametrize(
    ("kind", "low", "high", "said"),
    [
        ("u2", 0, 4095, "with more than 8 bits: values 0 to 4095 are taken as 0 to 4095 (12 bits)"),
        ("i4", 0, 255, "with more than 8 bits: values 0 to 255 are taken as 0 to 255 (8 bits)"),
        ("i2", -1000, 2000, "values -1000 to 2000 are taken as -1000 to 2000, which"),
        ("f4", 0, 1.01, "as floats: values 0 to 1.01 are taken as 0 to 1, which becomes 0 to 255"),
        ("f4", -1, 1, "as floats: values -1 to 1 are taken as -1 to 1"),
    ],
)
def test_a_note_names_the_range(
    tmp_path: Path, kind: str, low: float, high: float, said: str
) -> None:
    source = open_dataset(f"folder:{write_deep(tmp_path, high, high, kind=kind, low=low)}")
    assert said in source.notes[-1]
    assert (
        "value_range=[LOW,HIGH] in train, --value-range LOW HIGH in eval and predict"
        in source.notes[-1]
    )


def test_8_bit_images_have_no_range_and_no_note(tmp_path: Path) -> None:
    source = open_dataset(f"folder:{write_classes(tmp_path, {'red': 3, 'blue': 3})}")
    assert (source.value_range, source.notes) == (None, ())


def test_8_bit_images_among_deep_ones_are_noted_and_unchanged(tmp_path: Path) -> None:
    write_deep(tmp_path, 4095, 3000)
    for number in range(3):
        Image.new("L", (6, 5), 100).save(tmp_path / "a" / f"plain{number}.png")
    source = open_dataset(f"folder:{tmp_path}", val_fraction=0.5)
    assert source.notes[-1].startswith("4 of 7 images are stored with more than 8 bits")
    assert source.notes[-1].endswith("; the others have 8 bits and stay as they are")
    assert 100 in brightest(source.train) + brightest(source.val)


def test_16_bit_colours_count_as_deep(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(2):
            pixels = np.full((4, 4, 3), 1000, dtype=np.uint16)
            write_png(tmp_path / name / f"{number}.png", pixels)
    source = open_dataset(f"folder:{tmp_path}")
    assert source.value_range == (0, 1023)
    assert brightest(source.train) == [249]


def test_floats_and_integers_of_other_ranges_do_not_mix(tmp_path: Path) -> None:
    write_deep(tmp_path, 4095, 4000)
    write_tiff(tmp_path / "a" / "float.tif", ramp(1, "f4"))
    with pytest.raises(ValueError, match=r"integers \(0 to 4095 .*float.*no range of values fits"):
        open_dataset(f"folder:{tmp_path}")
    assert open_dataset(f"folder:{tmp_path}", value_range=(0, 4095)).value_range == (0, 4095)


def test_a_given_range_is_used_and_a_note_says_what_it_clips(tmp_path: Path) -> None:
    source = open_dataset(f"folder:{write_deep(tmp_path, 4095, 4095)}", value_range=[0, 1023])
    assert source.value_range == (0, 1023)
    assert "value_range 0 to 1023 (10 bits) becomes 0 to 255" in source.notes[-1]
    assert "; 73.3% of their values become white" in source.notes[-1]
    with pytest.raises(ValueError, match=r"got \[5, 5\]"):
        open_dataset(f"folder:{tmp_path}", value_range=[5, 5])


def test_a_note_says_that_a_range_does_not_change_8_bit_images(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 3, "blue": 3})
    source = open_dataset(f"folder:{tmp_path}", value_range=(0, 4095))
    assert "changes nothing: all images that were read have 8 bits" in source.notes[-1]


def test_headers_alone_give_the_same_survey(tmp_path: Path) -> None:
    write_deep(tmp_path, 4095, 3000)
    write_image(tmp_path / "plain.png")
    paths = sorted(map(str, tmp_path.rglob("*.*")))
    whole, heads = Survey(), Survey()
    find_broken(paths, whole, decode=True)
    find_broken(paths, heads, decode=False)
    assert whole.decide("here") == heads.decide("here") == (0, 4095)
    assert whole.kinds == heads.kinds == {"integer": 4, "8-bit": 1}
    assert whole.note((0, 4095), given=False) == heads.note((0, 4095), given=False)


@pytest.mark.parametrize(
    ("name", "held_out"), [("timm:", "validation"), ("timm:torch/image_folder", "val")]
)
def test_timms_readers_have_one_range_too(tmp_path: Path, name: str, held_out: str) -> None:
    for part, highs in (("train", (4095, 50)), (held_out, (255,))):
        for number, high in enumerate(highs):
            for label in ("a", "b"):
                path = tmp_path / part / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(ramp(high, "u2")).save(path)
    source = open_dataset(name, root=tmp_path, val_split=held_out)
    assert source.in_chans == 1
    assert source.value_range == (0, 4095)
    assert "taken as 0 to 4095 (12 bits)" in source.notes[-1]
    assert brightest(source.train) == [3, 255]
    assert brightest(source.val) == [16]
    given = open_dataset(name, root=tmp_path, val_split=held_out, value_range=(0, 255))
    assert given.value_range == (0, 255)


def test_an_unreadable_image_of_a_reader_is_an_error_and_is_not_replaced(
    tmp_path: Path,
) -> None:
    for part in ("train", "validation"):
        write_classes(tmp_path / part, {"red": 2, "blue": 2})
    source = open_dataset("timm:", root=tmp_path)
    Path(source.train.path(0)).write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"0\.png: the file is empty"):
        source.train.image(0)


def test_a_note_counts_files_with_unused_bands_and_pages(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    bands = np.zeros((4, 4, 5), dtype=np.uint8)
    path = write_tiff(tmp_path / "a" / "bands.tif", bands, extra=[0, 0])
    page = Image.new("L", (4, 4))
    page.save(tmp_path / "b" / "pages.tif", save_all=True, append_images=[page, page])
    page.save(tmp_path / "b" / "one.tif")
    source = open_dataset(f"folder:{tmp_path}")
    assert source.notes == (
        f"2 TIFF files have further bands or pages, such as {path}: the first page is used, as "
        "grey or RGB",
    )


def test_the_typical_size_has_the_median_aspect_ratio(tmp_path: Path) -> None:
    sizes = [(40, 10), (10, 40), (10, 10), (10, 11), (100, 10)]
    for number, size in enumerate(sizes):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", size).save(tmp_path / name / f"{number}.png")
    source = open_dataset(f"folder:{tmp_path}")
    assert source.typical_size in ((40, 10), (10, 40))
