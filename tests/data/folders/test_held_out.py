"""A folder of which recorded images are held out, whatever was added, moved or removed since."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn.data import DataSource, ImageSet, open_dataset
from convattn.data.folders.folder import open_folder
from tests.data.class_folders import write_broken, write_classes, write_image
from tests.data.deep_files import write_tiff


def names(source: DataSource, images: ImageSet) -> list[str]:
    return [source.relative_name(images, index) for index in range(len(images))]


def reopened(root: Path, before: DataSource, **options: Any) -> DataSource:
    """Open the folder with the recorded split of ``before``."""
    return open_dataset(
        f"folder:{root}",
        held_out=names(before, before.val),
        **options,
    )


@pytest.mark.parametrize("wrapping", [".", "train", "archive"])
def test_names_are_relative_to_the_folder(tmp_path: Path, wrapping: str) -> None:
    write_image(tmp_path / wrapping / "cat" / "deep" / "1.png")
    write_image(tmp_path / wrapping / "dog" / "1.png")
    write_image(tmp_path / wrapping / "dog" / "2.png")
    source = open_folder(tmp_path, val_fraction=0.3)
    assert source.root == str(tmp_path)
    prefix = "" if wrapping == "." else f"{wrapping}/"
    assert sorted(names(source, source.train) + names(source, source.val)) == [
        f"{prefix}cat/deep/1.png",
        f"{prefix}dog/1.png",
        f"{prefix}dog/2.png",
    ]


def test_names_do_not_depend_on_how_the_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "pets", {"cat": 2, "dog": 2})
    monkeypatch.chdir(tmp_path / "pets")
    for path in (".", "../pets", "../pets/", tmp_path / "pets"):
        source = open_folder(path, val_fraction=0.5)
        assert names(source, source.train)[0].startswith("cat/")


def test_images_in_memory_have_no_name() -> None:
    source = open_dataset("digits")
    assert source.relative_name(source.val, 0) == ""


def test_added_images_are_learnt_from(tmp_path: Path) -> None:
    before = open_folder(write_classes(tmp_path, {"blue": 16, "red": 16}))
    write_classes(tmp_path, {"blue": 8, "red": 8}, first=100)
    write_image(tmp_path / "blue" / "!.png")  # is listed before the others
    after = reopened(tmp_path, before)
    assert names(after, after.val) == names(before, before.val)
    assert set(names(after, after.train)) > set(names(before, before.train))
    assert len(after.train) == len(before.train) + 17
    assert after.split_here


def test_an_unchanged_folder_has_the_same_order_and_no_note(tmp_path: Path) -> None:
    before = open_folder(write_classes(tmp_path, {"blue": 9, "red": 11}), split_seed=3)
    after = reopened(tmp_path, before, val_fraction=0.9)
    for part in ("train", "val"):
        assert names(after, getattr(after, part)) == names(before, getattr(before, part))
    assert after.notes == ()


def test_a_folder_that_was_moved_has_the_same_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "old", {"blue": 6, "red": 6})
    before = open_folder(tmp_path / "old")
    held_out = names(before, before.val)
    (tmp_path / "old").rename(tmp_path / "new")
    after = open_folder(tmp_path / "new", held_out=held_out)
    assert names(after, after.val) == held_out
    assert after.notes == ()


def test_held_out_images_that_are_gone_are_counted(tmp_path: Path) -> None:
    before = open_folder(write_classes(tmp_path, {"blue": 10, "red": 10}))
    gone = names(before, before.val)[1]
    for name in (gone, *names(before, before.train)[:2]):
        (tmp_path / name).unlink()
    after = reopened(tmp_path, before)
    assert after.notes == (
        f"1 of 4 images that were held out is no longer in {tmp_path}: '{gone}'",
    )
    assert len(after.val) == 3


def test_a_folder_without_any_held_out_image_is_an_error(tmp_path: Path) -> None:
    before = open_folder(write_classes(tmp_path / "pets", {"blue": 5, "red": 5}))
    write_classes(tmp_path / "cars", {"blue": 5, "red": 5}, first=50)
    with pytest.raises(
        ValueError, match=r"none of the 2 images that were held out, such as 'blue/\d\.png'"
    ):
        reopened(tmp_path / "cars", before)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_compared_in_one_form_of_unicode(tmp_path: Path, forms: tuple[Any, Any]) -> None:
    for place, form in zip(("old", "new"), forms, strict=True):
        for number in range(4):
            name = unicodedata.normalize(form, f"grün{number}.png")
            write_image(tmp_path / place / "blue" / name)
            write_image(tmp_path / place / unicodedata.normalize(form, "größe") / name)
    before = open_folder(tmp_path / "old", val_fraction=0.5)
    after = reopened(tmp_path / "new", before)
    assert [unicodedata.normalize(forms[0], name) for name in names(after, after.val)] == names(
        before, before.val
    )
    assert after.notes == ()


def test_two_files_of_one_name_in_two_forms_keep_their_parts(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        for number in range(4):
            write_image(tmp_path / unicodedata.normalize(form, "größe") / f"{number}.png")
    write_classes(tmp_path, {"blue": 4})
    before = open_folder(tmp_path)
    after = reopened(tmp_path, before)
    assert names(after, after.val) == names(before, before.val)


def test_names_that_are_not_utf8_keep_their_parts(tmp_path: Path) -> None:
    red, cafe = tmp_path / os.fsdecode(b"ros\xe9"), os.fsdecode(b"caf\xe9")
    for number in range(4):
        write_image(red / f"{cafe}{number}.png")
    write_classes(tmp_path, {"blue": 4})
    before = open_folder(tmp_path, val_fraction=0.5)
    assert before.class_names == ("blue", os.fsdecode(b"ros\xe9"))
    after = reopened(tmp_path, before)
    assert names(after, after.val) == names(before, before.val)
    for images in (after.train, after.val):
        for index in range(len(images)):
            assert os.path.exists(images.path(index))
            images.image(index)


def test_a_held_out_image_that_broke_is_broken_not_gone(tmp_path: Path) -> None:
    before = open_folder(write_classes(tmp_path, {"blue": 10, "red": 10}))
    broken = names(before, before.val)[0]
    write_broken(tmp_path / broken)
    after = reopened(tmp_path, before, max_broken=0.1)
    assert [file.path for file in after.broken] == [str(tmp_path / broken)]
    assert names(after, after.val) == names(before, before.val)[1:]
    assert after.notes == ()


def test_images_that_were_broken_stay_out_without_being_decoded(tmp_path: Path) -> None:
    write_classes(tmp_path, {"blue": 50, "red": 50})
    cut = tmp_path / "red" / "cut.png"
    cut.write_bytes((tmp_path / "red" / "0.png").read_bytes()[:200])
    before = open_folder(tmp_path)
    assert [file.path for file in before.broken] == [str(cut)]
    after = reopened(tmp_path, before, known_broken=["red/cut.png"], check=False)
    assert names(after, after.train) == names(before, before.train)
    assert [file.path for file in after.broken] == [str(cut)]
    assert after.notes == ()


def test_without_the_check_only_headers_are_read(tmp_path: Path) -> None:
    write_classes(tmp_path, {"blue": 5, "red": 5})
    cut = tmp_path / "red" / "cut.png"
    cut.write_bytes((tmp_path / "red" / "0.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="1 of 11 images"):
        open_folder(tmp_path)
    source = open_dataset(f"folder:{tmp_path}", check=False)
    assert "red/cut.png" in names(source, source.train) + names(source, source.val)
    write_broken(cut)  # not even the header
    source = open_dataset(f"folder:{tmp_path}", check=False, max_broken=0.1)
    assert [file.path for file in source.broken] == [str(cut)]


def test_a_validation_part_that_was_added_does_not_replace_the_recorded_split(
    tmp_path: Path,
) -> None:
    write_classes(tmp_path / "train", {"blue": 5, "red": 5})
    before = open_folder(tmp_path)
    write_classes(tmp_path / "val", {"blue": 2, "red": 2})
    after = reopened(tmp_path, before)
    assert names(after, after.val) == names(before, before.val)
    assert after.split_here
    assert after.notes == ("val is not used: the images that were held out of train stay held out",)


def test_notes_on_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    root, ros = tmp_path / os.fsdecode(b"d\xe9"), os.fsdecode(b"ros\xe9")
    write_classes(root / "train", {ros: 3, "blue": 3})
    write_image(root / "train" / f"{ros}.png")
    pages = Image.new("L", (4, 4))
    pages.save(root / "train" / ros / f"{ros}.tif", save_all=True, append_images=[pages])
    source = open_folder(root)
    assert len(source.notes) == 2
    assert all(note.isprintable() and "\\udce9" in note for note in source.notes)


def test_errors_on_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    ros = os.fsdecode(b"ros\xe9")
    for name, kind in ((ros, "u2"), ("blue", "f4")):
        write_tiff(tmp_path / ros / name / f"{ros}.tif", np.ones((4, 4), kind))
        write_tiff(tmp_path / ros / name / "2.tif", np.ones((4, 4), kind))
    with pytest.raises(ValueError, match="no range of values fits both") as error:
        open_folder(tmp_path / ros)
    assert str(error.value).isprintable()
    with pytest.raises(FileNotFoundError, match="is not in") as missing:
        open_dataset("timm:torch/cifar10", root=tmp_path / ros)
    assert str(missing.value).isprintable()
