"""The format of Pascal VOC: boxes, classes, which part is held out, and problems."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from convattn.data import DataSource, Problem, UnusableDataError, open_dataset
from tests.data.class_folders import write_broken
from tests.data.objects.object_files import SIZE, voc_object, write_picture, write_voc


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))


def open_voc(root: Path, **options: Any) -> DataSource:
    return open_dataset(f"voc:{root}", targets="boxes", **{"max_broken": 1.0, **options})


def part(*names: str) -> dict[str, list[str]]:
    return {name: [voc_object()] for name in names}


def held_out(source: DataSource) -> list[str]:
    return [source.relative_name(source.val, i) for i in range(len(source.val))]


def test_boxes_counted_from_one_become_corners_and_difficult_objects_become_crowds(
    tmp_path: Path,
) -> None:
    objects = [
        voc_object("owl", (1, 1, 40, 30), "<difficult>1</difficult>"),
        voc_object("dog", (3, 4, 12, 11), "<difficult>0</difficult>"),
    ]
    write_voc(tmp_path, {"train": {"a": objects}, "val": {"b": [voc_object("cat")]}})
    source = open_voc(tmp_path)
    assert source.class_names == ("cat", "dog", "owl")
    target = source.train.target(0)
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [2, 3, 12, 11]]
    assert target["labels"].tolist() == [2, 1]
    assert target["crowd"].tolist() == [True, False]
    assert target["area"].tolist() == [1200, 80]
    assert target["image_id"] == 0
    assert source.train.image(0).size == SIZE
    assert source.problems == ()


@pytest.mark.parametrize(
    ("parts", "options", "train", "val", "note"),
    [
        (("train", "val", "test"), {}, 1, ["val"], ""),
        (("trainval", "test"), {}, 1, ["test"], "test.txt is held out in place of"),
        (("train", "test"), {}, 1, ["test"], "test.txt is held out in place of"),
        (("train", "val", "test"), {"val_split": "test"}, 1, ["test"], ""),
        (("train", "val", "test"), {"train_split": "val", "val_split": "train"}, 1, ["train"], ""),
    ],
)
def test_the_held_out_part(
    tmp_path: Path, parts: tuple[str, ...], options: Any, train: int, val: list[str], note: str
) -> None:
    write_voc(tmp_path, {name: part(name) for name in parts})
    source = open_voc(tmp_path, **options)
    assert (len(source.train), source.split_here) == (train, False)
    assert held_out(source) == [f"JPEGImages/{name}.jpg" for name in val]
    assert note in " ".join(source.notes)


@pytest.mark.parametrize("lists", [True, False])
def test_a_single_list_or_no_list_is_split_by_the_seed(tmp_path: Path, lists: bool) -> None:
    write_voc(tmp_path, {"train": part(*"abcdefghij")}, lists=lists)
    source = open_voc(tmp_path)
    assert (len(source.train), len(source.val), source.split_here) == (8, 2, True)
    assert held_out(open_voc(tmp_path, held_out=held_out(source))) == held_out(source)


def test_an_unknown_part_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a"), "val": part("b")})
    with pytest.raises(ValueError, match=r"val_split=test: .*test\.txt.* has 'train', 'val'"):
        open_voc(tmp_path, val_split="test")


def test_images_in_both_parts_are_named(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a", "b"), "val": part("b", "c")})
    assert "1 of 2 held-out images" in " ".join(open_voc(tmp_path).notes)


def test_the_folder_above_and_its_development_kit_are_found(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": part("a"), "val": part("b")})
    assert len(open_voc(tmp_path).train) == len(open_voc(tmp_path / "VOCdevkit").val) == 1
    with pytest.raises(FileNotFoundError, match="has no folder Annotations"):
        open_voc(tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages")


def test_lists_with_flags_and_images_of_other_endings(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a b", "c"), "val": part("d")})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a b\nc  1\n\n")
    (tmp_path / "JPEGImages" / "c.jpg").rename(tmp_path / "JPEGImages" / "c.JPEG")
    assert [open_voc(tmp_path).train.path(i)[-8:] for i in range(2)] == ["/a b.jpg", "s/c.JPEG"]


def test_a_fixed_list_of_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": {"a": [voc_object("dog")]}, "val": part("b")})
    source = open_voc(tmp_path, class_names=["owl", "dog", "cat"])
    assert source.class_names == ("owl", "dog", "cat")
    assert source.train.target(0)["labels"].tolist() == [1]
    with pytest.raises(ValueError, match="classes that are not in the model's classes: 'dog'"):
        open_voc(tmp_path, class_names=["cat", "dot"])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (voc_object(box=(4, 4, 4, 9)), "the box has no area: x 4 to 4, y 4 to 9"),
        (voc_object(box=(9, 4, 4, 9)), "the box has no area: x 9 to 4, y 4 to 9"),
        (
            voc_object(box=(34, 4, 50, 9)),
            "most of the box lies beyond the image: x 33 to 50, y 3 to 9, in an image of 40 x 30 "
            "pixels",
        ),
        (voc_object(box=(4, 4, "nan", 9)), "a number is NaN or infinite: x 4 to nan, y 4 to 9"),
        (voc_object(box=(4, "", 9, 9)), "a coordinate is not a number: ymin ''"),
        (voc_object("  "), "the object has no name"),
        ("<object><name>cat</name></object>", "the object has no bndbox"),
    ],
)
def test_an_object_with_a_problem_is_named_and_left_out(
    tmp_path: Path, entry: str, reason: str
) -> None:
    write_voc(tmp_path, {"train": {"a": [voc_object(), entry]}, "val": part("b")})
    source = open_voc(tmp_path)
    assert source.problems == (Problem("Annotations/a.xml", "object 2", reason),)
    assert len(source.train.target(0)["boxes"]) == 1
    assert "1 of 3 objects is left out" in source.notes[0]


def test_a_box_of_which_half_lies_in_the_image_is_cut_and_used(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": {"a": [voc_object(box=(4, 4, 50, 9))]}, "val": part("b")})
    source = open_voc(tmp_path, max_broken=0.0)
    assert source.train.target(0)["boxes"].tolist() == [[3, 3, 40, 9]]
    assert [(problem.file, problem.entry, problem.kind) for problem in source.problems] == [
        ("Annotations/a.xml", "object 1", "the box is cut at the edge of the image")
    ]


def test_an_image_with_a_broken_or_missing_file_is_left_out(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a", "b", "c", "d", "e"), "val": part("f")})
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations" / "b.xml").unlink()
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    write_broken(tmp_path / "JPEGImages" / "d.jpg")
    source = open_voc(tmp_path)
    found = {problem.file: problem.reason for problem in source.problems}
    assert found["Annotations/a.xml"].startswith("the file is not XML: ")
    assert found["Annotations/b.xml"] == "the annotation file is missing"
    assert found["JPEGImages/c.jpg"] == "the image is missing"
    assert found["JPEGImages/d.jpg"] == "the image cannot be read: not an image but a text file"
    assert len(found) == len(source.problems) == 4
    assert [source.train.path(i)[-5:] for i in range(len(source.train))] == ["e.jpg"]
    with pytest.raises(UnusableDataError, match=r"images in voc:.* cannot be used"):
        open_voc(tmp_path, max_broken=0.3)


def test_another_size_in_the_file_than_that_of_the_image_is_named(tmp_path: Path) -> None:
    size = "<size><width>41</width><height>30</height></size>"
    write_voc(tmp_path, {"train": part("a")}, size=size)
    write_voc(tmp_path, {"train": part("a", "b"), "val": part("c")})
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{size}</annotation>")
    source = open_voc(tmp_path)
    assert [problem.file for problem in source.problems] == ["JPEGImages/a.jpg"]
    assert "40 x 30 instead of 41 x 30" in source.problems[0].reason


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_the_file_lacks_is_read_from_the_image(tmp_path: Path, size: str) -> None:
    write_voc(tmp_path, {"train": part("a"), "val": part("b")}, size=size)
    source = open_voc(tmp_path)
    assert source.train.target(0)["boxes"].canvas_size == (30, 40)
    assert source.problems == ()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a"), "val": part("b")})
    assert len(open_voc(tmp_path).train.target(0)["boxes"]) == 1
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation></annotation>")
    assert len(open_voc(tmp_path).train.target(0)["boxes"]) == 0


def test_voc_has_no_masks_of_single_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"voc: has no masks of single objects; .* coco: or yolo:"):
        open_dataset(f"voc:{tmp_path}", targets="instances")


def test_a_renamed_image_is_found_again(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a"), "val": part("b")})
    open_voc(tmp_path)
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.jpeg")
    assert open_voc(tmp_path).train.path(0).endswith("a.jpeg")


def write_pair(root: Path, image: str, annotation: str, more: str = "") -> None:
    write_picture(root / image)
    (root / annotation).parent.mkdir(parents=True, exist_ok=True)
    (root / annotation).write_text(f"<annotation>{more}{voc_object()}</annotation>")


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("", ""),
        ("images/", "annotations/"),
        ("JPEGImages/", "Annotations/"),
        ("images/more/", "annotations/more/"),
        ("JPEGImages/more/", "Annotations/more/"),
    ],
)
def test_annotations_in_a_folder_of_their_own_or_beside_the_images(
    tmp_path: Path, images: str, annotations: str
) -> None:
    for name in "abcd":
        write_pair(tmp_path, f"{images}{name}.JPG", f"{annotations}{name}.XML")
    source = open_voc(tmp_path, held_out=[f"{images}d.JPG"])
    assert held_out(source) == [f"{images}d.JPG"]
    assert source.train.image(0).size == SIZE
    assert [len(source.train.target(i)["boxes"]) for i in range(3)] == [1, 1, 1]
    assert source.problems == ()


@pytest.mark.parametrize("images", ["train/", "train/images/", "images/train/"])
def test_folders_are_the_parts_where_there_are_no_lists(tmp_path: Path, images: str) -> None:
    for folder in ("train", "valid", "test"):
        place = images.replace("train", folder)
        write_pair(tmp_path, f"{place}a.jpg", f"{place.replace('images', 'labels')}a.xml")
    source = open_voc(tmp_path)
    assert (len(source.train), source.split_here) == (1, False)
    assert held_out(source) == [f"{images.replace('train', 'valid')}a.jpg"]
    assert held_out(open_voc(tmp_path, val_split="test"))[0].endswith("a.jpg")
    with pytest.raises(ValueError, match=r"val_split=more: .* has no such folder; it has 'train'"):
        open_voc(tmp_path, val_split="more")


def test_images_without_an_annotation_are_counted(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a", "b")}, lists=False)
    write_picture(tmp_path / "JPEGImages" / "c.jpg")
    notes = " ".join(open_voc(tmp_path).notes)
    assert "1 image has no XML file and is not used, such as JPEGImages/c.jpg" in notes


def test_namespaces_are_ignored(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a"), "val": part("b")})
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<annotation>", '<annotation xmlns="http://x.org/">'))
    assert len(open_voc(tmp_path).train.target(0)["boxes"]) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '<!DOCTYPE a [<!ENTITY b "b">]><annotation>&b;</annotation>',
            "the file defines entities: remove <!DOCTYPE ...> from it",
        ),
        (
            "<annotations><image/></annotations>",
            "the file is no annotation in VOC's format: its root is <annotations> instead of "
            "<annotation>",
        ),
    ],
)
def test_xml_that_is_no_annotation_is_named(tmp_path: Path, text: str, reason: str) -> None:
    write_voc(tmp_path, {"train": part("a", "c"), "val": part("b")})
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    assert open_voc(tmp_path).problems == (Problem("Annotations/a.xml", "", reason),)


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    more = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write_voc(tmp_path, {"train": {"a": [voc_object("cat", more=more)]}, "val": part("b")})
    source = open_voc(tmp_path)
    assert source.class_names == ("cat",)
    assert source.problems == ()


@pytest.mark.parametrize("line", ["a b -1", "a b.jpg", "a b", "JPEGImages/a b.jpg"])
def test_names_in_lists_may_have_spaces_flags_and_endings(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path, {"train": part("a b"), "val": part("d")})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"{line}\n")
    source = open_voc(tmp_path)
    assert source.problems == ()
    assert source.train.path(0).endswith("/a b.jpg")


def test_names_in_another_unicode_form_are_found(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part(unicodedata.normalize("NFD", "ü"))})
    write_voc(tmp_path, {"train": part("ü"), "val": part("d")})
    (tmp_path / "JPEGImages" / "ü.jpg").unlink()
    assert open_voc(tmp_path).problems == ()


def test_of_two_images_of_one_name_the_annotated_one_is_used(tmp_path: Path) -> None:
    write_pair(tmp_path, "JPEGImages/a.jpg", "Annotations/a.xml", "<filename>a.jpg</filename>")
    write_pair(tmp_path, "JPEGImages/b.jpg", "Annotations/b.xml", "<filename>gone.jpg</filename>")
    write_picture(tmp_path / "JPEGImages" / "a.png")
    source = open_voc(tmp_path, held_out=["JPEGImages/b.jpg"])
    assert source.train.path(0).endswith("a.jpg")


def test_all_images_missing_asks_for_the_folder_of_both(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": part("a"), "val": part("b")})
    for name in "ab":
        (tmp_path / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(UnusableDataError, match="the folder that holds both the images and"):
        open_voc(tmp_path)
