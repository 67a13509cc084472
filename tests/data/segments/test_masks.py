"""Folders of images with folders of masks: layouts, values, classes, and their problems."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.tv_tensors import Mask

from convattn.data import (
    IGNORED,
    BrokenImageError,
    DataSource,
    UnknownClassesError,
    UnusableDataError,
    open_dataset,
)
from convattn.data.check import check_dataset
from tests.data.segments.mask_folders import SIZE, write_image, write_pair, write_parts


def open_masks(root: Path, **options: Any) -> DataSource:
    return open_dataset(f"masks:{root}", targets="segments", **options)


NAMES = ("sky", "road", "car")


@pytest.mark.parametrize(
    "layout",
    [
        "images/{} masks/{}",
        "images/{} annotations/{}",
        "{}/images {}/masks",
        "{} {}_annot",
        "{} {}annot",
        "{}_images {}_masks",
        "inner/images/{} inner/masks/{}",
    ],
)
def test_images_and_masks_are_found_in_the_usual_folders(tmp_path: Path, layout: str) -> None:
    write_parts(tmp_path, layout, ("train", "val"))
    source = open_masks(tmp_path)
    assert source.class_names == NAMES
    assert [Path(source.train.path(i)).name for i in range(3)] == [
        f"train{i}.jpg" for i in range(3)
    ]
    assert [Path(source.val.path(i)).name for i in range(3)] == [f"val{i}.jpg" for i in range(3)]
    assert not source.split_here
    assert source.problems == source.broken == ()
    assert source.relative_name(source.val, 0) == f"{layout.split()[0].format('val')}/val0.jpg"


def test_a_target_is_a_mask_of_class_numbers(tmp_path: Path) -> None:
    write_pair(tmp_path, "images/a.jpg", "masks/a.png", [0, 1, 2, 255])
    write_pair(tmp_path, "images/b.jpg", "masks/b.png", [2, 0], palette=True)
    (tmp_path / "classes.txt").write_text("\ufeffsky\n# comment\nroad\ncar:0,0,142::\n\n")
    source = open_masks(tmp_path, val_fraction=0.5)
    assert source.class_names == NAMES
    found = {}
    for part in (source.train, source.val):
        target = part.target(0)
        assert isinstance(target, Mask)
        assert target.shape == part.image(0).size[::-1] == SIZE[::-1]
        found[Path(part.path(0)).stem] = target[0].tolist()
    assert found == {"a": [0, 1, 2, IGNORED, *[0] * 8], "b": [2, 0, *[2] * 10]}


def test_images_are_held_out_by_the_seed_where_there_is_no_validation_part(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train",), count=10)
    source = open_masks(tmp_path)
    assert source.split_here
    assert (len(source.train), len(source.val)) == (8, 2)
    held_out = [source.relative_name(source.val, i) for i in range(2)]
    assert [source.val.path(i) for i in range(2)] == [
        open_masks(tmp_path).val.path(i) for i in range(2)
    ]
    assert source.val.path(0) != open_masks(tmp_path, split_seed=1).val.path(0)
    write_pair(tmp_path, "images/train/new.jpg", "masks/train/new.png")
    again = open_masks(tmp_path, held_out=held_out, class_names=NAMES, check=False)
    assert [again.relative_name(again.val, i) for i in range(len(again.val))] == held_out
    assert len(again.train) == 9


def test_other_parts_are_held_out_by_name(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val", "test"))
    source = open_masks(tmp_path, val_split="test")
    assert Path(source.val.path(0)).name == "test0.jpg"
    assert any("'val'" in note and "not used" in note for note in source.notes)
    with pytest.raises(ValueError, match=r"no part for val_split=dev; there are 'test', 'train'"):
        open_masks(tmp_path, val_split="dev")
    with pytest.raises(ValueError, match="same part"):
        open_masks(tmp_path, train_split="val")


def test_a_part_without_masks_is_passed_over(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    write_pair(tmp_path, "images/test/a.jpg")
    assert "images/test is passed over: it has images only" in open_masks(tmp_path).notes


def test_a_mask_may_have_an_ending(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}_mask.png")
    source = open_masks(tmp_path, classes=NAMES)
    assert source.problems == ()
    assert len(source.train) + len(source.val) == 4
    write_pair(tmp_path, "images/9_mask.jpg", "masks/9_mask.png")
    write_pair(tmp_path, "images/9.jpg")  # the mask belongs to the other image
    problems = open_masks(tmp_path, classes=NAMES, max_broken=0.5).problems
    assert [problem.file for problem in problems] == ["images/9.jpg"]


def test_masks_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path, f"images/{number}.jpg", f"annotations/trimaps/{number}.png")
    (tmp_path / "annotations/xmls").mkdir()
    source = open_masks(tmp_path, classes=NAMES)
    assert source.problems == ()
    assert len(source.train) + len(source.val) == 4


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for number in range(3):
        write_pair(tmp_path, f"images/{number}{name}.jpg", f"masks/{number}{name}.png")
    source = open_masks(tmp_path, classes=NAMES)
    assert os.path.basename(source.train.path(0)) == f"0{name}.jpg"
    assert source.train.target(0).shape == source.train.image(0).size[::-1]


def test_classes_are_given_as_a_list_or_a_file(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    for classes in (["a", "b", "c"], "names.txt", str(tmp_path / "names.txt")):
        assert open_masks(tmp_path, classes=classes).class_names == ("a", "b", "c")
    with pytest.raises(FileNotFoundError, match=r"other\.txt.*classes="):
        open_masks(tmp_path, classes="other.txt")


def test_classes_without_names_are_called_by_their_values(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    (tmp_path / "classes.txt").unlink()
    source = open_masks(tmp_path)
    assert source.class_names == ("0", "1", "2")
    assert any("have no names: they are called 0 to 2" in note for note in source.notes)
    assert open_masks(tmp_path, ignored=0).class_names == ("1", "2")
    assert open_masks(tmp_path, ignored=0).train.target(0)[0, :3].tolist() == [IGNORED, 0, 1]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((0, 255), r"fewer than two classes: 0, and ignored=255; list the classes"),
        (
            (0, 38, 75),
            r"the values 0, 38 and 75 \(75 is in masks/0\.png\), .*ignored=75; else list",
        ),
        ((1, 2, 3), r"the values 1 to 3 .*, and 0 is missing\. .*ignored=0; else"),
    ],
)
def test_values_that_are_no_class_numbers_are_named(
    tmp_path: Path, values: tuple[int, ...], named: str
) -> None:
    for number in range(3):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", values)
    with pytest.raises(UnusableDataError, match=named):
        open_masks(tmp_path)


def test_an_unlisted_value_of_most_masks_is_an_error_with_the_fix(tmp_path: Path) -> None:
    for number in range(5):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", [0, 1, 2, 3])
    with pytest.raises(UnusableDataError) as error:
        open_masks(tmp_path, classes=NAMES)
    assert "the masks hold the values 0 to 3, but the classes have the values 0 to 2" in str(
        error.value
    )
    assert "ignored=3" in str(error.value)
    assert [problem.file for problem in error.value.problems] == [
        f"masks/{i}.png" for i in range(5)
    ]
    source = open_masks(tmp_path, classes=NAMES, ignored=3)
    assert source.train.target(0)[0, :4].tolist() == [0, 1, 2, IGNORED]


def test_the_line_of_the_ignored_value_is_no_class(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", [0, 1, 2])
    source = open_masks(tmp_path, classes=["unlabelled", "road", "car"], ignored=0)
    assert source.class_names == ("road", "car")
    assert source.train.target(0)[0, :3].tolist() == [IGNORED, 0, 1]


def test_the_classes_of_a_model_decide_the_numbers(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    source = open_masks(tmp_path, class_names=("car", "tree", "sky", "road"))
    assert source.class_names == ("car", "tree", "sky", "road")
    assert source.train.target(0)[0, :3].tolist() == [2, 3, 0]
    with pytest.raises(UnknownClassesError, match="'car'"):
        open_masks(tmp_path, class_names=("sky", "road"))
    (tmp_path / "classes.txt").unlink()
    source = open_masks(tmp_path, class_names=NAMES, check=False)
    assert source.class_names == NAMES
    assert source.train.target(0)[0, :3].tolist() == [0, 1, 2]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def as_colours(path: Path) -> None:
    Image.new("RGB", SIZE).save(path)


def as_16_bits(path: Path) -> None:
    Image.fromarray(np.zeros(SIZE[::-1], np.uint16)).save(path)


def as_other_size(path: Path) -> None:
    Image.new("L", (5, 5)).save(path)


def as_unlisted(path: Path) -> None:
    Image.new("L", SIZE, 9).save(path)


def as_jpeg(path: Path) -> None:
    Image.new("L", SIZE).save(path, "JPEG")


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("masks/train/3.png", cut_off, "the mask cannot be read: the file is cut off"),
        ("masks/train/3.png", as_colours, "the mask is in colours: mode RGB; save class numbers"),
        ("masks/train/3.png", as_16_bits, "the mask has more than 8 bits: mode I;16; save"),
        (
            "masks/train/3.png",
            as_other_size,
            "the mask has another size.*: 5 x 5 instead of 12 x 8",
        ),
        ("masks/train/3.png", as_unlisted, "values that are no class: 9; .* the values 0 to 2"),
        ("masks/train/3.png", as_jpeg, "the mask is lossy: a JPEG file"),
        ("images/train/3.jpg", cut_off, "the image cannot be read: the file is cut off"),
        ("images/train/3.jpg", Path.unlink, "the mask has no image"),
    ],
)
def test_a_file_with_a_problem_is_left_out_and_named(
    tmp_path: Path, file: str, change: Callable[[Path], None], reason: str
) -> None:
    for number in range(9):
        write_pair(tmp_path, f"images/train/{number}.jpg", f"masks/train/{number}.png")
    write_pair(tmp_path, "images/val/a.jpg", "masks/val/a.png")
    change(tmp_path / file)
    source = open_masks(tmp_path, classes=NAMES, max_broken=0.2)
    (problem,) = source.problems
    gone = change is Path.unlink
    assert problem.file == ("masks/train/3.png" if gone else file)
    assert re.search(reason, problem.reason)
    assert len(source.train) == 8
    assert len(source.broken) == (0 if gone else 1)
    assert any("3.png" in note or "3.jpg" in note for note in source.notes)
    if not gone:
        assert Path(source.broken[0].path) == tmp_path / "images/train/3.jpg"
        with pytest.raises(UnusableDataError, match=rf"1 of 10 (.|\n)*{re.escape(file)}"):
            open_masks(tmp_path, classes=NAMES)
        known = open_masks(
            tmp_path, classes=NAMES, known_broken=["images/train/3.jpg"], check=False
        )
        assert len(known.train) == 8


def test_an_image_without_a_mask_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"), count=6)
    (tmp_path / "masks/train/train4.png").unlink()
    source = open_masks(tmp_path, max_broken=0.1)
    assert [str(problem) for problem in source.problems] == [
        "images/train/train4.jpg: the image has no mask"
    ]
    assert len(source.train) == 5
    shutil.rmtree(tmp_path / "masks/train")
    write_pair(tmp_path / "masks", "x.jpg", "train/other.png")
    with pytest.raises(UnusableDataError, match=r"train0\.jpg here; masks are called other\.png"):
        open_masks(tmp_path)


@pytest.mark.parametrize("change", [cut_off, as_colours, as_unlisted, as_other_size])
def test_what_only_decoding_finds_is_raised_when_the_image_is_read(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    source = open_masks(tmp_path)
    change(tmp_path / "masks/train/train1.png")
    with pytest.raises(BrokenImageError, match=r"train1\.(png|jpg)"):
        source.train.image(1), source.train.target(1)


def test_headers_are_compared_where_files_are_not_decoded(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"), count=5)
    as_other_size(tmp_path / "masks/train/train1.png")
    as_unlisted(tmp_path / "masks/train/train2.png")
    source = open_masks(tmp_path, check=False, max_broken=0.2)
    assert [problem.file for problem in source.problems] == ["masks/train/train1.png"]


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("as_stored", [False, True])
def test_a_mask_fits_a_turned_photograph_upright_or_as_it_is_stored(
    tmp_path: Path, orientation: int, as_stored: bool
) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[:2] = 255  # the upper edge is white
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "images/train/train0.jpg"
    write_image(path, Image.fromarray(stored), exif=exif, quality=95)
    size = (12, 8) if as_stored else (8, 12)
    Image.new("L", size).save(tmp_path / "masks/train/train0.png")
    source = open_masks(tmp_path)
    assert source.problems == ()
    image = source.train.image(0)
    assert image.size == size
    assert source.train.target(0).shape == size[::-1]
    pixels = np.asarray(image.convert("L"))
    edge = pixels[0] if as_stored else pixels[:, -1 if orientation == 6 else 0]
    assert edge.mean() > 200


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_hold_their_values(tmp_path: Path, bits: int) -> None:
    """Pillow spreads such values over 0..255."""
    for number in range(2):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", size=(8, 8))
        write_grey(tmp_path / f"masks/{number}.png", bits)
    source = open_masks(tmp_path, classes=NAMES, val_fraction=0.5)
    assert source.train.target(0)[0].tolist() == [0, 1] * 4


def write_grey(path: Path, bits: int) -> None:
    """Write a grey PNG of 8 x 8 pixels with values 0 and 1 in turn."""
    row = sum((x % 2) << (bits * (7 - x)) for x in range(8)).to_bytes(bits, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * 8)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_the_check_of_a_data_set_names_each_problem_once(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"), count=6)
    for number, change in enumerate((cut_off, as_colours, as_other_size, as_unlisted)):
        change(tmp_path / f"masks/train/train{number}.png")
    cut_off(tmp_path / "images/train/train4.jpg")
    (tmp_path / "masks/val/val0.png").unlink()
    found = check_dataset(f"masks:{tmp_path}")
    assert {problem.file: problem.kind for problem in found.problems} == {
        "masks/train/train0.png": "the mask cannot be read",
        "masks/train/train1.png": "the mask is in colours",
        "masks/train/train2.png": "the mask has another size than its image",
        "masks/train/train3.png": "the mask holds values that are no class",
        "images/train/train4.jpg": "the image cannot be read",
        "images/val/val0.jpg": "the image has no mask",
    }
    assert len(found.problems) == 6
    assert found.images == 6


def test_the_options_of_masks_are_passed_by_name(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", [0, 1, 2, 3])
    source = open_dataset(f"masks:{tmp_path}", targets="segments", classes=NAMES, ignored=3)
    assert source.class_names == NAMES
    assert source.train.target(0)[0, :4].tolist() == [0, 1, 2, IGNORED]
    with pytest.raises(ValueError, match="ignored= are for masks:DIR"):
        open_dataset(f"voc:{tmp_path}", targets="segments", ignored=3)
    with pytest.raises(ValueError, match="val_split=dev"):
        open_dataset(f"masks:{tmp_path}", targets="segments", classes=NAMES, val_split="dev")


def test_a_pickled_set_reads_the_same(tmp_path: Path) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    train = open_masks(tmp_path).train
    again = pickle.loads(pickle.dumps(train)).scaled((0.0, 1.0))
    assert again.path(1) == train.path(1)
    assert (again.target(1) == train.target(1)).all()


def write_two_folders(root: Path) -> None:
    write_parts(root, "images masks", ("a",))
    write_parts(root, "imgs masks", ("a",))


@pytest.mark.parametrize(
    ("prepare", "error", "named"),
    [
        (lambda root: None, FileNotFoundError, "there is no folder"),
        (lambda root: write_pair(root, "images/a.jpg"), ValueError, "expected images/train with"),
        (write_two_folders, ValueError, "two folders .* 'images', 'imgs'"),
    ],
)
def test_a_folder_without_images_and_masks_is_an_error(
    tmp_path: Path, prepare: Callable[[Path], Any], error: type[Exception], named: str
) -> None:
    prepare(tmp_path / "data")
    with pytest.raises(error, match=named):
        open_masks(tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "no line"), ("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "same name: 'a'")],
)
def test_a_wrong_list_of_classes_is_named(tmp_path: Path, text: str, named: str) -> None:
    write_parts(tmp_path, "images/{} masks/{}", ("train", "val"))
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=named):
        open_masks(tmp_path)


def test_a_wrong_ignored_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ignored=256"):
        open_masks(tmp_path, ignored=256)


def test_masks_of_0_and_255_with_a_list_of_two_classes_are_an_error(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", (0, 255))
    with pytest.raises(ValueError, match=r"values 0 and 255, but .* fewer than two classes occur"):
        open_masks(tmp_path, classes=["background", "cell"])
    found = check_dataset(f"masks:{tmp_path}", classes=["background", "cell"])
    assert [problem.kind for problem in found.problems] == ["the masks have fewer than two classes"]
    assert "no pixel of the masks has the class 'cell'" in found.notes


def test_classes_that_no_pixel_has_are_named(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", (0, 1))
    source = open_masks(tmp_path, classes=["sky", "road", "car"])
    assert source.notes == ("no pixel of the masks has the class 'car'",)


def test_masks_in_colours_without_a_list_of_classes_say_so(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, f"images/{number}.jpg")
        write_image(tmp_path / f"masks/{number}.png", Image.new("RGB", SIZE, (0, 128, 0)))
    with pytest.raises(
        ValueError, match=r"no mask of .* can be used: .*mask is in colours: mode RGB"
    ):
        open_masks(tmp_path)
    found = check_dataset(f"masks:{tmp_path}")
    assert [problem.kind for problem in found.problems] == ["the mask is in colours"] * 3
