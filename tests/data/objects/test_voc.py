"""The format of Pascal VOC: boxes, classes, which part is held out, and problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convattn.data import DataSource, Problem, UnusableDataError, open_dataset
from tests.data.class_folders import write_broken
from tests.data.objects.object_files import SIZE, voc_object, write_voc


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
