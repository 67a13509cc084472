"""The format of Ultralytics YOLO: its YAML file, labels as boxes and polygons, and problems."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from convattn.data import DataSource, Problem, UnusableDataError, open_dataset
from tests.data.objects.object_files import SIZE, write_picture, write_yolo

BOX = "1 0.5 0.5 0.25 0.4\n"
SHAPE = "2 0.1 0.1 0.9 0.2 0.5 0.9\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))


def open_yolo(path: Path, targets: str = "boxes", **options: Any) -> DataSource:
    options = {"max_broken": 1.0, **options}
    return open_dataset(f"yolo:{path}", targets=targets, **options)  # type: ignore[arg-type]


def parts(train: str = BOX, val: str = BOX) -> dict[str, dict[str, str | None]]:
    return {"train": {"a": train}, "val": {"b": val}}


def test_boxes_become_corners_in_pixels(tmp_path: Path) -> None:
    source = open_yolo(write_yolo(tmp_path, parts(BOX + "0 0.5 0.5 1 1\n")))
    target = source.train.target(0)
    assert target["boxes"].tolist() == [[15, 9, 25, 21], [0, 0, 40, 30]]
    assert target["labels"].tolist() == [1, 0]
    assert target["crowd"].tolist() == [False, False]
    assert target["area"].tolist() == [120, 1200]
    assert target["image_id"] == 0
    assert source.class_names == ("cat", "dog", "owl")
    assert source.train.image(0).size == SIZE
    assert (len(source.train), len(source.val), source.split_here) == (1, 1, False)
    assert source.problems == ()


def test_polygons_have_boxes_and_masks(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, parts(SHAPE, SHAPE))
    target = open_yolo(file, "instances").train.target(0)
    assert np.allclose(target["boxes"], [[4, 3, 36, 27]])
    points = [4, 3, 36, 6, 20, 27]
    runs = coco_mask.merge(coco_mask.frPyObjects([points], 30, 40))
    assert np.array_equal(target["masks"][0], coco_mask.decode(runs))
    assert target["area"].tolist() == [coco_mask.area(runs)]
    assert np.allclose(open_yolo(file).train.target(0)["boxes"], [[4, 3, 36, 27]])


@pytest.mark.parametrize("names", [["x", "y", "z"], {0: "x", 1: "y", 2: "z"}, {"1": "y", "0": "x"}])
def test_names_are_a_list_or_numbered(tmp_path: Path, names: Any) -> None:
    source = open_yolo(write_yolo(tmp_path, parts(), names))
    assert source.class_names == ("x", "y", "z")[: len(names)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "has no names"),
        ({0: "x", 2: "z"}, "names has the numbers 0, 2"),
        ("cat", "names must be a list"),
        ([True, False, "x"], "names has True, which is no text: write names such as yes and no in"),
        (["a", None], "names has None, which is no text"),
    ],
)
def test_names_that_are_not_usable_are_an_error(tmp_path: Path, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_yolo(write_yolo(tmp_path, parts(), names))


def test_another_number_of_names_than_nc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names has 3 classes, but nc is 2"):
        open_yolo(write_yolo(tmp_path, parts(), nc=2))


def test_nc_gives_numbers_as_names(tmp_path: Path) -> None:
    assert open_yolo(write_yolo(tmp_path, parts(), None, nc=2)).class_names == ("0", "1")


def test_a_folder_stands_for_its_yaml_file(tmp_path: Path) -> None:
    write_yolo(tmp_path, parts())
    assert len(open_yolo(tmp_path).train) == 1
    (tmp_path / "other.yaml").write_text("")
    (tmp_path / "data.yaml").rename(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=r"'mine\.yaml', 'other\.yaml'"):
        open_yolo(tmp_path)


@pytest.mark.parametrize("path", ["gone/elsewhere", None, "../data"])
def test_a_folder_that_was_moved_is_found_beside_the_yaml_file(
    tmp_path: Path, path: str | None
) -> None:
    file = write_yolo(tmp_path / "set", parts(), path=path)
    assert len(open_yolo(file).val) == 1


def test_paths_that_start_above_the_file_as_roboflow_writes_them(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "set", parts(), train="../images/train", path=None)
    assert len(open_yolo(file).train) == 1


def test_an_absolute_path(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "set", parts(), path=str(tmp_path / "set"))
    file = file.rename(tmp_path / "moved.yaml")
    assert len(open_yolo(file).train) == 1


def test_train_is_a_list_of_folders_or_a_list_in_a_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "more" / "deep" / "c.jpg")
    file = write_yolo(tmp_path, parts(), train=["images/train", "images/more"])
    source = open_yolo(file)
    names = [source.relative_name(source.train, i) for i in range(2)]
    assert names == ["images/train/a.jpg", "images/more/deep/c.jpg"]
    (tmp_path / "train.txt").write_text("./images/more/deep/c.jpg\n\nimages/train/a.jpg\n")
    source = open_yolo(write_yolo(tmp_path, parts(), train="train.txt"))
    assert [source.train.path(i)[-5:] for i in range(2)] == ["c.jpg", "a.jpg"]
    assert len(source.train.target(1)["boxes"]) == 1


def test_another_split_is_held_out(tmp_path: Path) -> None:
    three: dict[str, dict[str, str | None]] = {**parts(), "test": {"c": BOX, "d": BOX}}
    file = write_yolo(tmp_path, three)
    assert len(open_yolo(file, val_split="test").val) == 2
    with pytest.raises(ValueError, match=r"val_split=extra: .* has 'train', 'val', 'test'"):
        open_yolo(file, val_split="extra")


def test_without_a_held_out_part_the_seed_splits(tmp_path: Path) -> None:
    images: dict[str, str | None] = dict.fromkeys("abcdefghij", BOX)
    source = open_yolo(write_yolo(tmp_path, {"train": images}))
    assert (len(source.train), len(source.val), source.split_here) == (8, 2, True)


def test_images_without_labels_are_kept_as_background_and_counted(tmp_path: Path) -> None:
    images: dict[str, str | None] = {"a": BOX, "b": "", "c": None}
    source = open_yolo(write_yolo(tmp_path, {"train": images, "val": {"d": BOX}}))
    assert [len(source.train.target(i)["boxes"]) for i in range(3)] == [1, 0, 0]
    assert source.problems == ()
    assert "1 of 3 images in images/train has no file of labels" in " ".join(source.notes)


def test_no_labels_at_all_are_an_error(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, {"train": {"a": None}, "val": {"b": None}})
    with pytest.raises(ValueError, match=r"no file of labels .*labels/train/a\.txt"):
        open_yolo(file)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3 0.5 0.5 0.2 0.2", "the class is beyond the list: 3, and names has 3 classes"),
        ("-1 0.5 0.5 0.2 0.2", "the class is beyond the list: -1, and names has 3 classes"),
        ("0.5 0.5 0.5 0.2 0.2", "the class is not a whole number: '0.5'"),
        ("cat 0.5 0.5 0.2 0.2", "the class is not a whole number: 'cat'"),
        ("0 0.5 0.5 0.2", "a line is neither a box (5 numbers) nor a polygon (7 or more): 4"),
        (
            "0 0.5 0.5 0.2 0.2 0.9",
            "a line has a box and one more number: 6 numbers; delete the last one if it is the "
            "score of a prediction",
        ),
        ("# 0 0.5 0.5 0.2 0.2", "the class is not a whole number: '#'"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "a polygon has an odd number of coordinates: 7"),
        ("0 0.5 0.5 0 0.2", "the box has no area: x 20 to 20, y 12 to 18"),
        ("0 0.5 nan 0.2 0.2", "a number is NaN or infinite: x 16 to 24, y nan to nan"),
        ("0 0.5 x 0.2 0.2", "a coordinate is not a number: 'x'"),
        ("0 20 15 8 6", "coordinates are in pixels: they must be shares of the image, 0 to 1"),
        (
            "0 1.1 0.5 0.4 0.8",
            "most of the box lies beyond the image: x 36 to 52, y 3 to 27, in an image of 40 x 30 "
            "pixels",
        ),
        ("1 0.5 0.5 0.25 0.4", "duplicate entry: an earlier line is the same"),
    ],
)
def test_a_line_with_a_problem_is_named_and_left_out(
    tmp_path: Path, line: str, reason: str
) -> None:
    source = open_yolo(write_yolo(tmp_path, parts(BOX + line)))
    assert source.problems == (Problem("labels/train/a.txt", "line 2", reason),)
    assert len(source.train.target(0)["boxes"]) == 1


def test_boxes_and_polygons_of_which_half_lies_in_the_image_are_cut_and_used(
    tmp_path: Path,
) -> None:
    lines = "0 1 0.5 0.4 0.8\n1 0.8 0.1 1.1 0.1 1.1 0.9 0.8 0.9\n"
    source = open_yolo(write_yolo(tmp_path, parts(lines, SHAPE)), max_broken=0.0)
    assert np.allclose(source.train.target(0)["boxes"], [[32, 3, 40, 27], [32, 3, 40, 27]])
    assert [(problem.entry, problem.kind) for problem in source.problems] == [
        ("line 1", "the box is cut at the edge of the image"),
        ("line 2", "a polygon is cut at the edge of the image"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "0 {x1} {y1} {x2} {y2}",
        "0 {x1} {y1} {width} {height}",
    ],
)
def test_corners_in_place_of_centres_are_found_by_the_files_as_a_whole(
    tmp_path: Path, line: str
) -> None:
    random = np.random.default_rng(0)
    lines = []
    for _ in range(40):
        x1, y1, width, height = random.uniform(0, 0.5, 4)
        values = {"x1": x1, "y1": y1, "x2": x1 + width, "y2": y1 + height}
        lines.append(line.format(**values, width=width, height=height))
    file = write_yolo(tmp_path, parts("\n".join(lines)))
    with pytest.raises(UnusableDataError, match=r"fit as x1, y1, .*centre"):
        open_yolo(file)


def test_a_box_beside_polygons_has_no_mask(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, parts(SHAPE + BOX, SHAPE))
    source = open_yolo(file, "instances")
    assert source.problems == (Problem("labels/train/a.txt", "line 2", "the object has no mask"),)
    assert source.train.target(0)["labels"].tolist() == [2]
    assert open_yolo(file).problems == ()


def test_a_file_that_is_not_text_leaves_its_image_out(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, {"train": {"a": BOX, "c": BOX}, "val": {"b": BOX}})
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00\x01")
    source = open_yolo(file)
    assert [(p.file, p.entry, p.kind) for p in source.problems] == [
        ("labels/train/a.txt", "", "the file is not text")
    ]
    assert len(source.train) == 1


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, parts())
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    source = open_yolo(file)
    assert source.train.image(0).size == (30, 40)
    assert source.train.target(0)["boxes"].canvas_size == (40, 30)
    assert np.allclose(source.train.target(0)["boxes"], [[11.25, 12, 18.75, 28]])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, {"train": {"a": BOX, "c": BOX}, "val": {"b": BOX}})
    (tmp_path / "images" / "train" / "a.jpg").write_bytes(b"no image")
    source = open_yolo(file)
    assert [(p.file, p.kind) for p in source.problems] == [
        ("images/train/a.jpg", "the image cannot be read")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("3", "must hold keys and values"), ("names: [a]", "has no train")],
)
def test_a_yaml_file_that_is_not_usable_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(UnusableDataError, match=message):
        open_yolo(file)


def test_a_missing_folder_is_named_with_the_places_that_were_tried(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, parts())
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "val": "images/gone"}))
    with pytest.raises(FileNotFoundError, match="val: there is no images/gone"):
        open_yolo(file)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, parts())
    assert len(open_yolo(file).train.target(0)["boxes"]) == 1
    (tmp_path / "labels" / "train" / "a.txt").write_text("")
    assert len(open_yolo(file).train.target(0)["boxes"]) == 0


def test_images_elsewhere_do_not_confuse_the_index(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "set", parts())
    expected = open_yolo(file).train.path(0)
    picture = write_picture(tmp_path / "more" / "images" / "c.jpg")
    (tmp_path / "more" / "labels").mkdir()
    (tmp_path / "more" / "labels" / "c.txt").write_text(BOX)
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "val": str(picture.parent)}))
    source = open_yolo(file)
    assert source.train.path(0) == expected
    assert source.val.path(0) == str(picture)


def test_paths_with_backslashes(tmp_path: Path) -> None:
    file = write_yolo(
        tmp_path / "set", parts(), train="..\\images\\train", val="list.txt", path=".\\"
    )
    (tmp_path / "set" / "list.txt").write_text("images\\val\\b.jpg\n")
    source = open_yolo(file)
    assert (len(source.train), len(source.val)) == (1, 1)
    assert source.problems == ()


def test_paths_in_a_list_may_start_from_a_folder_above(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "set", parts(), train="train.txt")
    (tmp_path / "set" / "train.txt").write_text("set/images/train/a.jpg\n")
    assert len(open_yolo(file).train.target(0)["boxes"]) == 1


def test_labels_in_another_unicode_form_and_with_an_ending_in_capitals(tmp_path: Path) -> None:
    images: dict[str, str | None] = {"ü": BOX, unicodedata.normalize("NFD", "ö"): BOX, "c": BOX}
    file = write_yolo(tmp_path, {"train": images, "val": {"d": BOX}})
    labels = tmp_path / "labels" / "train"
    (labels / "ü.txt").rename(labels / unicodedata.normalize("NFD", "ü.txt"))
    (labels / unicodedata.normalize("NFD", "ö.txt")).rename(labels / "ö.txt")
    (labels / "c.txt").rename(labels / "c.TXT")
    source = open_yolo(file)
    assert [len(source.train.target(i)["boxes"]) for i in range(3)] == [1, 1, 1]
    assert source.notes == ()


def test_the_boxes_of_poses_are_read(tmp_path: Path) -> None:
    line = "1 0.5 0.5 0.25 0.4 0.1 0.1 2 0.9 0.9 2\n"
    source = open_yolo(write_yolo(tmp_path, parts(line, line), kpt_shape=[2, 3]))
    assert source.train.target(0)["boxes"].tolist() == [[15, 9, 25, 21]]
    line = "1 0.5 0.5 0.25 0.4 0.1 0.1 0.9 0.9\n"
    source = open_yolo(write_yolo(tmp_path, parts(line, line), kpt_shape=[2, 2]))
    assert source.train.target(0)["boxes"].tolist() == [[15, 9, 25, 21]]


def test_numbers_as_other_programs_write_them(tmp_path: Path) -> None:
    text = "\ufeff1.0\t0.5 5e-1  0.25 0.4   \r\n\r\n"
    source = open_yolo(write_yolo(tmp_path, parts(text)))
    assert source.train.target(0)["boxes"].tolist() == [[15, 9, 25, 21]]
    assert source.problems == ()


def test_a_folder_without_a_yaml_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data\.yaml: write one with train: FOLDER"):
        open_yolo(tmp_path)
