from __future__ import annotations

import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest

from convattn.data import open_dataset
from convattn.data.folders.folder import open_folder
from convattn.data.folders.listing import find_images
from convattn.data.source import DataSource, ImageSet
from tests.data.class_folders import write_broken, write_classes, write_image


def labels(images: ImageSet) -> list[int]:
    return [images.label(i) for i in range(len(images))]


def paths(images: ImageSet) -> set[str]:
    return {images.path(i) for i in range(len(images))}


def test_a_folder_per_class_is_split(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 10, "blue": 20})
    source = open_dataset(f"folder:{tmp_path}")
    assert source.class_names == ("blue", "red")
    assert (len(source.train), len(source.val)) == (24, 6)
    assert labels(source.val) == [0, 0, 0, 0, 1, 1]
    assert source.split_here
    assert not paths(source.train) & paths(source.val)


def test_the_split_is_fixed_and_its_size_can_be_chosen(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 20, "blue": 20})
    first, again = open_folder(tmp_path), open_folder(tmp_path)
    other = open_folder(tmp_path, split_seed=1)
    larger = open_folder(tmp_path, val_fraction=0.5)
    assert paths(first.val) == paths(again.val)
    assert paths(first.val) != paths(other.val)
    assert len(larger.val) == 20


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_folders_train_and_val_are_not_split(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "train", {"red": 4, "blue": 4})
    write_classes(tmp_path / name, {"red": 3, "blue": 1})
    source = open_folder(tmp_path)
    assert (len(source.train), len(source.val)) == (8, 4)
    assert not source.split_here


def test_train_alone_is_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"red": 5, "blue": 5})
    source = open_folder(tmp_path)
    assert (len(source.train), len(source.val)) == (8, 2)


def test_classes_are_numbered_in_natural_order(tmp_path: Path) -> None:
    write_classes(tmp_path, {"10": 2, "2": 2, "1": 2})
    assert open_folder(tmp_path).class_names == ("1", "2", "10")


def test_images_in_subfolders_in_upper_case_and_behind_links_are_found(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "deep" / "er" / "a.PNG")
    write_image(tmp_path / "cat" / "ä 猫.JPG")
    write_image(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    found = [Path(path).name for path in find_images(tmp_path / "cat")]
    assert sorted(found) == ["a.PNG", "b.png", "ä 猫.JPG"]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    path = write_image(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert find_images(tmp_path / "cat") == [str(path)]


@pytest.mark.parametrize("target", ["..", "../..", "../../.."])
def test_a_link_out_of_a_class_to_a_folder_above_gives_it_no_images_of_others(
    tmp_path: Path, target: str
) -> None:
    root = write_classes(tmp_path / "data" / "pets", {"cat": 5, "dog": 5})
    (root / "cat" / "up").symlink_to(target)
    source = open_folder(root)
    assert len(source.train) + len(source.val) == 10
    for images in (source.train, source.val):
        for path, label in zip(sorted(paths(images)), sorted(labels(images)), strict=True):
            assert source.class_names[label] == Path(path).parent.name
    assert any("1 links that repeat a folder" in note for note in source.notes)


def test_a_link_to_a_folder_above_is_not_followed_in_a_linked_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "store", {"cat": 5})
    root = write_classes(tmp_path / "pets", {"dog": 5})
    (root / "cat").symlink_to(tmp_path / "store" / "cat")
    (tmp_path / "store" / "cat" / "up").symlink_to(root)
    source = open_folder(root)
    assert len(source.train) + len(source.val) == 10


@pytest.mark.parametrize("linked", ["folder", "images"])
def test_a_held_out_part_that_is_the_training_part_is_an_error(tmp_path: Path, linked: str) -> None:
    write_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    if linked == "folder":
        (tmp_path / "val").symlink_to("train")
    else:
        for name in ("cat", "dog"):
            (tmp_path / "val" / name).mkdir(parents=True)
            for path in (tmp_path / "train" / name).iterdir():
                (tmp_path / "val" / name / f"x{path.name}").symlink_to(path)
    with pytest.raises(ValueError, match=r"all 6 held-out images .* are images to learn from too"):
        open_folder(tmp_path)
    source = open_folder(tmp_path, class_names=("cat", "dog"))  # a trained model is evaluated
    assert any("6 of 6 held-out images" in note for note in source.notes)


def test_a_note_counts_images_that_are_learnt_from_and_held_out(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    write_classes(tmp_path / "val", {"cat": 3, "dog": 3}, first=9)
    (tmp_path / "val" / "cat" / "again.png").symlink_to("../../train/cat/0.png")
    note = "1 of 7 held-out images is an image to learn from too, by a link: 'val/cat/again.png'"
    assert note in open_folder(tmp_path).notes


def test_links_that_lead_nowhere_are_counted_or_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 5, "dog": 5})
    for name in ("loop", "loop.png"):
        (tmp_path / "cat" / name).symlink_to(name)
    (tmp_path / "loop").symlink_to("loop")
    source = open_folder(tmp_path, max_broken=0.5)
    assert len(source.train) + len(source.val) == 10
    assert [Path(file.path).name for file in source.broken] == ["loop.png"]
    assert any("1 broken links" in note for note in source.notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_with_the_name_of_an_image_is_not_read(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 5, "dog": 5})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "linked.png").symlink_to("pipe.png")
    assert len(find_images(tmp_path / "cat")) == 5
    note = "2 files of other kinds passed over: 2 pipes or devices"
    assert note in open_folder(tmp_path).notes


def test_one_image_per_class_cannot_be_split(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 1, "blue": 1})
    with pytest.raises(ValueError, match=rf"{tmp_path} has one image per class"):
        open_folder(tmp_path)


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 5, "blue": 5, ".thumbnails": 3})
    write_broken(tmp_path / "red" / "._1.png")  # as macOS leaves them
    source = open_folder(tmp_path)
    assert source.class_names == ("blue", "red")
    assert not source.broken


def test_the_error_on_a_missing_folder_names_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"no folder {tmp_path}/pest; did you.*/pets\?"):
        open_folder(tmp_path / "pest")


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a file; folder:PATH needs a folder"):
        open_folder(write_image(tmp_path / "a.png"))


def test_the_error_on_an_empty_folder_shows_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no class folders.*cat/1\.jpg"):
        open_folder(tmp_path)


def test_images_without_class_folders_are_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 image but no class folders"):
        open_folder(tmp_path)


def test_one_class_is_too_few(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 3})
    with pytest.raises(ValueError, match="only one class folder, 'red'"):
        open_folder(tmp_path)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 3, "blue": 3})
    (tmp_path / "green").mkdir()
    with pytest.raises(ValueError, match=rf"no images in {tmp_path}/green: looked for \.avif"):
        open_folder(tmp_path)


def test_a_held_out_class_that_is_not_in_training_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"red": 2, "blue": 2})
    write_classes(tmp_path / "val", {"red": 2, "blu": 2})
    message = r"val has classes that are not in .*train: 'blu'; did you mean 'blue'\?"
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path)


def test_one_broken_image_in_a_hundred_is_skipped_and_listed(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 60, "blue": 39})
    bad = write_broken(tmp_path / "red" / "bad.jpg")
    source = open_folder(tmp_path)
    assert [file.path for file in source.broken] == [str(bad)]
    assert "not an image" in source.broken[0].reason
    assert len(source.train) + len(source.val) == 99
    assert str(bad) not in paths(source.train) | paths(source.val)


def test_more_broken_images_are_an_error_that_names_them(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 60, "blue": 38})
    bad = [write_broken(tmp_path / "red" / f"bad{i}.jpg") for i in range(2)]
    message = f"2 of 100 images in {tmp_path} cannot be read (2.0%, at most 1.0% are skipped)"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_folder(tmp_path)
    assert all(str(path) in str(error.value) for path in bad)
    assert len(open_folder(tmp_path, max_broken=0.02).broken) == 2


def test_broken_images_are_counted_for_each_part(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"red": 100, "blue": 100})
    write_classes(tmp_path / "val", {"red": 2, "blue": 2})
    write_broken(tmp_path / "val" / "red" / "bad.png")
    with pytest.raises(ValueError, match=r"1 of 5 images in .*val cannot be read"):
        open_folder(tmp_path)


def test_one_class_of_a_given_list_keeps_its_number(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 4})
    source = open_folder(tmp_path, class_names=("blue", "green", "red"))
    assert source.class_names == ("blue", "green", "red")
    assert set(labels(source.train) + labels(source.val)) == {2}


def test_a_class_that_the_model_does_not_know_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path, {"red": 2, "grean": 2})
    message = r"not in the model's classes: 'grean'; did you mean 'green'\?"
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, class_names=("green", "red"))


@pytest.mark.parametrize("name", ["mnist", "", "folder:", "imagenet:x"])
def test_an_unknown_name_lists_the_three_forms(name: str) -> None:
    with pytest.raises(ValueError, match="Known: digits, folder:PATH, timm:NAME"):
        open_dataset(name)


def test_the_error_on_a_bare_path_suggests_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"did you mean folder:{tmp_path}\?"):
        open_dataset(str(tmp_path))


def test_the_source_is_frozen(tmp_path: Path) -> None:
    source: DataSource = open_folder(write_classes(tmp_path, {"red": 2, "blue": 2}))
    with pytest.raises(AttributeError):
        source.name = "other"  # type: ignore[misc]


def in_form(form: Literal["NFC", "NFD"], *names: str) -> dict[str, int]:
    return {unicodedata.normalize(form, name): 3 for name in names}


def test_class_names_are_compared_and_kept_in_nfc(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", in_form("NFC", "Größe", "klein"))
    write_classes(tmp_path / "val", in_form("NFD", "Größe", "klein"))
    source = open_folder(tmp_path)
    assert source.class_names == ("Größe", "klein")
    assert labels(source.val) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_models_classes_are_found_in_another_unicode_form(tmp_path: Path, forms: Any) -> None:
    write_classes(tmp_path, in_form(forms[0], "Größe"))
    given = tuple(in_form(forms[1], "Größe", "klein"))
    assert open_folder(tmp_path, class_names=given).class_names == ("Größe", "klein")


def test_two_unicode_forms_in_one_folder_are_one_class(tmp_path: Path) -> None:
    write_classes(tmp_path, in_form("NFC", "Größe", "klein") | in_form("NFD", "Größe"))
    source = open_folder(tmp_path)
    assert source.class_names == ("Größe", "klein")
    assert len(source.train) + len(source.val) == 9
    assert source.notes == (f"one class in {tmp_path}, in two forms of Unicode: 'Größe'",)


def test_the_order_of_classes_does_not_depend_on_the_unicode_form(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        write_classes(tmp_path / form, in_form(form, "Grün", "Grund", "Grau"))
        assert open_folder(tmp_path / form).class_names == ("Grau", "Grund", "Grün")


def test_a_held_out_class_may_differ_in_case(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"Cat": 2, "dog": 2})
    write_classes(tmp_path / "val", {"cat": 2, "dog": 2})
    source = open_folder(tmp_path)
    assert labels(source.val) == [0, 0, 1, 1]
    assert source.notes == (f"read in {tmp_path}/val without regard to case: 'cat' as 'Cat'",)


def test_classes_may_differ_in_case_only(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"A": 2, "a": 2, "b": 2})
    write_classes(tmp_path / "val", {"A": 2, "a": 2, "b": 1, "B": 2})
    with pytest.raises(ValueError, match=r"not in .*train: 'B'\. Known"):
        open_folder(tmp_path)
    write_classes(tmp_path / "new", {"b": 2, "a": 2})
    source = open_folder(tmp_path / "new", class_names=("A", "a", "B"))
    assert set(labels(source.train) + labels(source.val)) == {1, 2}


@pytest.mark.parametrize("bad", ["\x1b[2J", "two\nlines", os.fsdecode(b"caf\xe9"), "\u202egnp"])
def test_messages_escape_control_characters_in_names(tmp_path: Path, bad: str) -> None:
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "val", {"a": 2, bad: 2})
    with pytest.raises(ValueError, match="not in") as error:
        open_folder(tmp_path)
    assert str(error.value).isprintable()
    assert f"'{ascii(bad)[1:-1]}'" in str(error.value)
    write_broken(tmp_path / "val" / "a" / f"{bad}.png")
    shutil.rmtree(tmp_path / "val" / bad)
    with pytest.raises(ValueError, match="cannot be read") as error:
        open_folder(tmp_path)
    assert all(line.isprintable() for line in str(error.value).split("\n"))
