from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from convattn.data import DataSource
from convattn.data.folders.folder import open_folder
from tests.data.class_folders import write_classes, write_image
from tests.data.folders.test_folder import labels, paths

TWO = {"blue": 5, "red": 5}


def notes(source: DataSource) -> str:
    return "\n".join(source.notes)


def write_parts(root: Path, *names: str) -> Path:
    for name in names:
        write_classes(root / name, TWO)
    return root


def refused(folder: Path) -> str:
    """Open a folder that can be read in two ways; return the question."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        open_folder(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Testing"),
        ("Train", "Val"),
        ("TRAIN", "TEST"),
        ("train", "Val"),
        ("train", "dev"),
        ("train_set", "test_set"),
        ("trainset", "testset"),
        ("seg_train", "seg_test"),
        ("Train Images", "Validation Images"),
        ("train-80", "eval-20"),
        ("train2017", "val2017"),
        ("flowers.train", "flowers.valid"),
        ("TrainData", "DevData"),
        ("trainval", "test"),
        ("train", "hold_out"),
        ("my train", "val"),
    ],
)
def test_parts_are_known_by_any_usual_name(tmp_path: Path, train: str, val: str) -> None:
    source = open_folder(write_parts(tmp_path, train, val))
    assert source.class_names == ("blue", "red")
    assert not source.split_here
    assert all(f"/{val}/" in path for path in paths(source.val))


@pytest.mark.parametrize("wrapping", ["archive", "archive/data", "train", "test"])
def test_a_folder_that_holds_only_one_folder_stands_for_it(tmp_path: Path, wrapping: str) -> None:
    write_image(tmp_path / "__MACOSX" / "1.png")
    write_parts(tmp_path / wrapping, "Training", "Testing")
    source = open_folder(tmp_path)
    assert (source.class_names, source.split_here) == (("blue", "red"), False)
    assert wrapping == "train" or f"is taken from {tmp_path / wrapping}, the only" in notes(source)


def test_each_part_may_hold_only_one_folder(tmp_path: Path) -> None:
    write_parts(tmp_path, "seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred")
    source = open_folder(tmp_path)
    assert (source.class_names, len(source.train), len(source.val)) == (("blue", "red"), 10, 10)
    assert "not used: 'seg_pred'" in notes(source)


def test_the_only_folder_may_be_a_class_of_a_trained_model(tmp_path: Path) -> None:
    for below in ("red", "red/deep"):
        write_classes(tmp_path / below, {"dark": 2, "light": 2})
        source = open_folder(tmp_path, class_names=("blue", "red"))
        assert set(labels(source.train)) == {1}
        shutil.rmtree(tmp_path / "red")


@pytest.mark.parametrize("folder", ["Red", "RED/deep"])
def test_the_only_folder_may_be_a_class_in_another_case(tmp_path: Path, folder: str) -> None:
    write_classes(tmp_path / folder, {"dark": 2, "light": 2})
    source = open_folder(tmp_path, class_names=("blue", "red"))
    assert set(labels(source.train)) == {1}


def test_the_only_folder_may_be_called_like_a_class_in_another_case(tmp_path: Path) -> None:
    write_classes(tmp_path / "red", {"Blue": 5, "RED": 5})
    source = open_folder(tmp_path, class_names=("blue", "red"))
    assert set(labels(source.train)) == {0, 1}


def test_part_names_in_another_case_are_classes_of_a_trained_model(tmp_path: Path) -> None:
    write_classes(tmp_path, {"Train": 3, "Test": 3})
    source = open_folder(tmp_path, class_names=("exam", "test", "train"))
    assert set(labels(source.train)) == {1, 2}


@pytest.mark.parametrize("wrapping", ["red", "red/deep"])
def test_the_only_folder_may_be_called_like_a_class(tmp_path: Path, wrapping: str) -> None:
    write_parts(tmp_path, wrapping)
    for known in (None, ("blue", "red")):  # in training, and in an evaluation
        source = open_folder(tmp_path, class_names=known)
        assert labels(source.train) == [0] * 4 + [1] * 4


def test_a_validation_part_is_preferred_to_a_test_part(tmp_path: Path) -> None:
    source = open_folder(write_parts(tmp_path, "train", "test", "Dev"))
    assert all("/Dev/" in path for path in paths(source.val))
    assert "test is not used, as Dev is held out" in source.notes


def test_a_note_says_that_a_test_part_replaces_a_validation_part(tmp_path: Path) -> None:
    source = open_folder(write_parts(tmp_path, "Training", "Testing"))
    assert source.notes == (
        "Testing is held out in place of a validation part: the best epoch is chosen on it",
    )


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (["eval", "val"], "val"),
        (["holdout", "valid_images", "test"], "valid_images"),
        (["dev", "validation"], "validation"),
        (["Evaluation", "Devel"], "Devel"),
        (["heldout", "development", "eval"], "development"),
        (["test", "hold_out"], "hold_out"),
        (["Testing", "eval_set"], "eval_set"),
        (["validation", "val"], "val"),
        (["val_set", "valid"], "valid"),
    ],
)
def test_the_part_that_is_named_for_validation_is_held_out(
    tmp_path: Path, names: list[str], held_out: str
) -> None:
    source = open_folder(write_parts(tmp_path, "train", *names))
    assert all(f"/{held_out}/" in path for path in paths(source.val))
    told = [f"{name} is not used, as {held_out} is held out" for name in names if name != held_out]
    assert set(told) <= set(source.notes)
    in_place = (
        f"{held_out} is held out in place of a validation part: the best epoch is chosen on it"
    )
    assert (in_place in source.notes) == (held_out in ("hold_out", "eval_set"))


def test_an_unlabelled_test_part_is_passed_over(tmp_path: Path) -> None:
    write_parts(tmp_path, "train")
    write_image(tmp_path / "test" / "1.png")
    source = open_folder(tmp_path)
    assert source.split_here
    assert source.notes == ("test is passed over: it holds 1 image but no class folders",)


@pytest.mark.parametrize("name", ["unknown", "Unlabelled", "test", "images", "all_images", "0"])
def test_unlabelled_images_as_one_unknown_class_are_passed_over(tmp_path: Path, name: str) -> None:
    write_parts(tmp_path, "train")
    write_image(tmp_path / "test" / name / "1.png")
    source = open_folder(tmp_path)
    assert source.split_here
    assert f"test is passed over: its only folder, '{name}', is none" in notes(source)


@pytest.mark.parametrize(("part", "name"), [("val", "redd"), ("test", "Bleu"), ("val", "green")])
def test_one_misspelled_class_in_the_held_out_part_is_an_error(
    tmp_path: Path, part: str, name: str
) -> None:
    write_parts(tmp_path, "train")
    write_image(tmp_path / part / name / "1.png")
    assert f"has classes that are not in {tmp_path}/train: '{name}'" in refused(tmp_path)


def test_a_number_that_is_no_class_is_an_error_where_classes_are_numbers(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"1": 2, "2": 2})
    write_classes(tmp_path / "val", {"3": 2})
    assert "has classes that are not in" in refused(tmp_path)


@pytest.mark.parametrize("classes", [[], ["blue", "red"]])
def test_an_empty_part_is_passed_over(tmp_path: Path, classes: list[str]) -> None:
    write_parts(tmp_path, "train", "test")
    for name in ["", *classes]:
        (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
    source = open_folder(tmp_path)
    assert all("/test/" in path for path in paths(source.val))
    assert source.notes[0].startswith("val is passed over: ")


def test_a_note_names_a_class_without_held_out_images(tmp_path: Path) -> None:
    write_parts(tmp_path, "train")
    write_classes(tmp_path / "val", {"red": 3})
    (tmp_path / "val" / "blue").mkdir()
    source = open_folder(tmp_path)
    assert labels(source.val) == [1, 1, 1]
    assert source.notes == ("val has no image of 'blue'",)


@pytest.mark.parametrize(
    "name", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN"]
)
def test_system_folders_are_neither_classes_nor_searched(tmp_path: Path, name: str) -> None:
    write_parts(tmp_path, ".")
    write_image(tmp_path / name / "1.png")
    write_image(tmp_path / "red" / name / "thumbnail.jpg")
    source = open_folder(tmp_path)
    assert (source.class_names, len(source.train) + len(source.val)) == (("blue", "red"), 10)
    assert source.notes == (f"2 system folders passed over: 2 {name}",)


def test_an_unreadable_hidden_folder_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if ".Trash" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (write_parts(tmp_path, "") / ".Trash-0").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert open_folder(tmp_path).class_names == ("blue", "red")


def test_parts_of_unknown_names_are_an_error(tmp_path: Path) -> None:
    message = refused(write_parts(tmp_path, "part1", "part2"))
    assert "'part1', 'part2' hold folders of the same names, 'blue', 'red'" in message
    assert f"{tmp_path}/val/cat/1.jpg" in message
    assert f"ln -s {tmp_path} NEW/train" in message


def test_parts_of_unknown_names_that_lack_a_class_are_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path / "north", {"ant": 2, "bee": 2, "fly": 2})
    write_classes(tmp_path / "south", {"ant": 2, "bee": 2})
    write_image(tmp_path / "maps" / "1.png")
    assert "'ant', 'bee'" in refused(tmp_path)


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["cat/day", "cat/night", "dog/day", "dog/night"], ("cat", "dog")),
        (["train/freight", "train/fast", "car", "bus"], ("bus", "car", "train")),
        (["val", "test"], ("test", "val")),
        (["cat_train", "cat_test", "dog_train", "dog_test"], ()),
    ],
)
def test_what_the_error_advises_is_accepted(
    tmp_path: Path, folders: list[str], classes: tuple[str, ...]
) -> None:
    write_classes(tmp_path / "old", dict.fromkeys(folders, 2))
    refused(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "train").symlink_to(tmp_path / "old")
    assert open_folder(tmp_path / "new").class_names == (classes or tuple(sorted(folders)))


def test_a_note_names_classes_in_train_that_may_be_parts(tmp_path: Path) -> None:
    write_parts(tmp_path / "train", "cat", "dog")
    source = open_folder(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert "read as classes, though its folders 'cat', 'dog' hold" in notes(source)


def test_the_only_folder_is_a_class_if_it_holds_images(tmp_path: Path) -> None:
    write_parts(tmp_path, "cat")
    write_image(tmp_path / "cat" / "1.png")
    assert "has only one class folder, 'cat'" in refused(tmp_path)


def test_classes_of_a_trained_model_are_not_ambiguous(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"day": 3, "night": 3})
    write_classes(tmp_path / "test", {"day": 3, "night": 3})
    source = open_folder(tmp_path, class_names=("exam", "test", "train"))
    assert set(labels(source.train)) == {1, 2}


@pytest.mark.parametrize(
    "pair", [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("image", "ground_truth")]
)
@pytest.mark.parametrize("below", ["", "train"])
def test_images_and_masks_are_not_two_classes(
    tmp_path: Path, pair: tuple[str, str], below: str
) -> None:
    write_classes(tmp_path / below, dict.fromkeys(pair, 2))
    assert "segmentation" in refused(tmp_path)


@pytest.mark.parametrize(
    ("images", "marks", "ending"),
    [
        ("images/{}.jpg", "masks/{}_mask.png", "_1"),
        ("images/{}.jpg", "labels/{}.png", "_1"),
        ("images/{}.jpg", "masks/{}.png", ""),
        ("frames/{}.jpg", "boxes/{}.png", "_1"),
    ],
)
def test_masks_beside_another_folder_are_found_by_their_file_names(
    tmp_path: Path, images: str, marks: str, ending: str
) -> None:
    for number in range(4):
        for path in (images, marks):
            stem = f"00{number}" if not ending else f"scan{ending}{number}"
            write_image(tmp_path / path.format(stem))
    write_image(tmp_path / "overlays" / "figure.png")
    assert "segmentation" in refused(tmp_path)


def test_masks_in_every_class_are_an_error(tmp_path: Path) -> None:
    for name in ("COVID", "Normal"):
        write_classes(tmp_path / "train" / name, {"images": 2, "masks": 2})
    assert "holds 'images', 'masks'" in refused(tmp_path)


@pytest.mark.parametrize("parts", [("val", "test"), ("Testing",)])
def test_a_missing_training_part_is_named(tmp_path: Path, parts: tuple[str, ...]) -> None:
    message = refused(write_parts(tmp_path, *parts))
    assert "but no training part: expected" in message
    assert f"give folder:{tmp_path}/{parts[0]}" in message
    assert open_folder(tmp_path / parts[0]).class_names == ("blue", "red")


def test_a_trained_model_needs_no_training_part(tmp_path: Path) -> None:
    source = open_folder(write_parts(tmp_path, "test"), class_names=("blue", "red"))
    assert len(source.train) + len(source.val) == 10


def test_parts_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": 3, "test": 3})
    assert "train holds 3 images but no class folders" in refused(tmp_path)


def test_classes_beside_a_test_part_are_an_error(tmp_path: Path) -> None:
    assert "'test' holds folders of the same names as" in refused(write_parts(tmp_path, "", "test"))


def test_a_second_copy_of_the_classes_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path, {"rose": 2, "tulip": 2, "daisy": 2})
    write_classes(tmp_path / "flowers", {"rose": 2, "tulip": 2, "daisy": 2})
    assert "'flowers' holds folders of the same names as" in refused(tmp_path)


@pytest.mark.parametrize("classes", [("cat", "dog"), ("archive",), ("plants/plants/plants",)])
def test_parts_in_the_class_folders_are_an_error(tmp_path: Path, classes: tuple[str]) -> None:
    for name in classes:
        write_classes(tmp_path / name, {"Training": 2, "Testing": 2})
    write_image(tmp_path / "figures" / "1.png")
    assert "'Testing', 'Training'" in refused(tmp_path)


def test_a_part_of_an_unknown_name_beside_train_is_an_error(tmp_path: Path) -> None:
    message = refused(write_parts(tmp_path, "train", "holly"))
    assert "holds 'train' and other folders with images: 'holly'" in message
    assert f"give folder:{tmp_path}/train" in message


def test_ambiguous_folders_are_found_without_regard_to_case(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    write_classes(tmp_path / "holly", {"Cat": 2, "Dog": 2})
    assert "holds 'train' and other folders with images: 'holly'" in refused(tmp_path)
    (tmp_path / "train").rename(tmp_path / "part")
    assert "'holly', 'part' hold folders of the same names" in refused(tmp_path)
    write_classes(tmp_path, {"CAT": 2, "DOG": 2})
    (tmp_path / "part").rename(tmp_path / "CAT" / "part")
    assert "'holly' holds folders of the same names as those beside it" in refused(tmp_path)


def test_a_note_names_a_folder_of_figures_beside_train(tmp_path: Path) -> None:
    write_image(write_parts(tmp_path, "train") / "docs" / "figure.png")
    assert open_folder(tmp_path).notes == ("folders beside train that are not used: 'docs'",)


def test_two_training_parts_are_an_error(tmp_path: Path) -> None:
    message = refused(write_parts(tmp_path, "train1", "train2", "val"))
    assert "several training parts, 'train1', 'train2'" in message


def test_parts_of_two_data_sets_are_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path, {f"{a}_{b}": 2 for a in ("cat", "dog") for b in ("train", "test")})
    assert "parts of several data sets" in refused(tmp_path)


@pytest.mark.parametrize(
    "classes",
    [
        ["car", "bus", "train"],
        ["bullet train", "tram"],
        ["quiz", "test", "exam"],
        ["crash test", "road"],
        ["mask", "no_mask"],
        ["images", "texts", "tables"],
        ["valid", "forged"],
        ["2", "10", "train2"],
        ["contrail", "protest"],
        ["frames", "boxes", "bags"],
        ["frames", "boxes"],
        ["photos", "labels", "stamps"],
        ["originals", "masks", "wigs", "hats"],
        ["recycler", "shredder"],
    ],
)
def test_classes_may_be_called_like_parts(tmp_path: Path, classes: list[str]) -> None:
    write_classes(tmp_path, dict.fromkeys(classes, 2))
    assert set(open_folder(tmp_path).class_names) == set(classes)


def test_a_note_names_a_class_that_is_called_like_a_part(tmp_path: Path) -> None:
    write_classes(tmp_path, {"quiz": 2, "test": 2})
    assert "read as classes: 'test'; where these are parts of the data set" in notes(
        open_folder(tmp_path)
    )


def test_classes_may_have_subfolders(tmp_path: Path) -> None:
    write_classes(tmp_path / "cat", {"siamese": 2, "more": 2})
    write_classes(tmp_path / "dog", {"poodle": 2, "beagle": 2, "more": 2})
    write_classes(tmp_path / "fish", {"fish": 2})
    source = open_folder(tmp_path)
    assert (source.class_names, source.notes) == (("cat", "dog", "fish"), ())


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "val")
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "train" / name)
    assert f"2 images beside the class folders in {tmp_path}/train passed over" in notes(
        open_folder(tmp_path)
    )


def test_files_of_other_kinds_are_counted_by_extension(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "val")
    names = ["a.TGA", "b.tga", "c.heic", "d.nii.gz", "e.xyz", "scan.0001", "photo"]
    for name in [*names, "note.txt", "Thumbs.db", "desktop.ini", "a.json", ".DS_Store", "README"]:
        (tmp_path / "train" / "red" / name).write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "train" / "red" / "README").write_text("as it is")
    write_image(tmp_path / "x.png").rename(tmp_path / "val" / "red" / "photo")
    os.symlink("gone", tmp_path / "val" / "red" / "linked")
    kinds = "3 without extension, 2 .tga, 1 .heic, 1 .nii.gz, 1 .xyz, 1 broken links"
    assert open_folder(tmp_path).notes == (f"9 files of other kinds passed over: {kinds}",)


def test_the_error_on_a_class_of_unknown_images_names_their_kind(tmp_path: Path) -> None:
    write_parts(tmp_path, "")
    (tmp_path / "green").mkdir()
    (tmp_path / "green" / "1.heic").touch()
    with pytest.raises(ValueError, match=r"no images in .*/green \(but 1 \.heic\): looked for"):
        open_folder(tmp_path)
