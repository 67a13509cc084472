"""COCO's format: classes, boxes, masks, orders of ids, and what is found where."""

from __future__ import annotations

import json
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from convattn.data import BrokenImageError, DataSource, UnusableDataError, open_dataset
from tests.data.objects.object_files import SIZE, annotation, images_of, write_coco, write_picture


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))


def open_coco(root: Path, targets: str = "boxes", **options: object) -> DataSource:
    return open_dataset(f"coco:{root}", targets=targets, **options)  # type: ignore[arg-type]


def test_boxes_become_corners_and_ids_with_gaps_become_numbers(tmp_path: Path) -> None:
    found = [annotation(11, 2, category_id=18), annotation(10, 2, bbox=[0, 0, 40, 30])]
    write_coco(tmp_path, found)
    write_coco(tmp_path, [], part="val2017", first=100, count=2)
    source = open_coco(tmp_path)
    assert source.class_names == ("cat", "dog", "owl")
    assert (len(source.train), len(source.val), source.split_here) == (4, 2, False)
    target = source.train.target(1)
    assert target["boxes"].tolist() == [[2, 3, 12, 11], [0, 0, 40, 30]]
    assert target["boxes"].canvas_size == (30, 40)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [2, 1]
    assert target["labels"].dtype == torch.int64
    assert target["area"].tolist() == [80, 1200]
    assert target["crowd"].tolist() == [False, False]
    assert target["image_id"] == 2
    assert source.train.image(1).size == SIZE
    assert source.problems == ()


def test_an_image_without_objects_is_kept(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    write_coco(tmp_path, [annotation(1, 9)], part="val2017", first=9, count=1)
    target = open_coco(tmp_path).train.target(3)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["crowd"].shape == target["area"].shape == (0,)


def test_area_and_crowd_are_those_of_the_file(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1, area=33.5, iscrowd=1)])
    target = open_coco(tmp_path, val_fraction=0.5, held_out=["train2017/0004.jpg"]).train.target(0)
    assert target["area"].tolist() == [33.5]
    assert target["crowd"].tolist() == [True]


def test_one_file_is_split_by_the_seed(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(n, n) for n in range(1, 11)], count=10)
    first, again, other = (open_coco(tmp_path, split_seed=seed) for seed in (0, 0, 1))
    paths = [[source.val.path(i) for i in range(2)] for source in (first, again, other)]
    assert paths[0] == paths[1] != paths[2]
    assert (len(first.train), len(first.val), first.split_here) == (8, 2, True)


def test_held_out_names_hold_out_the_same_images(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    source = open_coco(tmp_path, held_out=["train2017/0002.jpg", "train2017/0003.jpg"])
    names = [source.relative_name(source.val, i) for i in range(len(source.val))]
    assert names == ["train2017/0002.jpg", "train2017/0003.jpg"]
    with pytest.raises(ValueError, match="holds none of the 1 images that were held out"):
        open_coco(tmp_path, held_out=["gone.jpg"])


def test_unreadable_held_out_images_are_not_said_to_be_gone(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    name = "train2017/0002.jpg"
    (tmp_path / name).write_bytes(b"this is not an image")
    with pytest.raises(UnusableDataError, match="has no image to hold out"):
        open_coco(tmp_path, held_out=[name], max_broken=0.5)


SQUARE = [5, 5, 15, 5, 15, 12, 5, 12]
PART = [20.5, 3.25, 30, 3, 30, 20]


def expected_mask(segmentation: object) -> np.ndarray:
    runs = coco_mask.frPyObjects(segmentation, SIZE[1], SIZE[0])
    found: np.ndarray = coco_mask.decode(
        coco_mask.merge(runs) if isinstance(segmentation, list) else runs
    )
    return found


def uncompressed() -> dict[str, object]:
    return {"size": [30, 40], "counts": [7, 100, 300, 93, 700]}


def test_masks_of_polygons_and_both_kinds_of_run_lengths_equal_those_of_pycocotools(
    tmp_path: Path,
) -> None:
    runs = coco_mask.frPyObjects(uncompressed(), 30, 40)
    compressed = {"size": [30, 40], "counts": runs["counts"].decode()}
    masks: list[object] = [[SQUARE, PART], uncompressed(), compressed]
    found = [annotation(n, 1, segmentation=mask) for n, mask in enumerate(masks)]
    write_coco(tmp_path, [annotation(9, 2, segmentation=[PART]), *found])
    target = open_coco(tmp_path, "instances", held_out=["train2017/0004.jpg"]).train.target(0)
    assert target["masks"].dtype == torch.uint8
    expected = np.stack([expected_mask(masks[0]), *[expected_mask(uncompressed())] * 2])
    assert np.array_equal(target["masks"].numpy(), expected)
    assert target["area"].tolist() == expected.sum((1, 2)).tolist()


def test_random_masks_survive_compressed_run_lengths(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    masks = [random.random((30, 40)) < share for share in (0, 0.02, 0.5, 1)]
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    found = [
        annotation(n, 1, segmentation={**runs, "counts": runs["counts"].decode()})
        for n, runs in enumerate(encoded)
    ]
    write_coco(tmp_path, found)
    source = open_coco(tmp_path, "instances", held_out=["train2017/0004.jpg"])
    assert np.array_equal(source.train.target(0)["masks"].numpy(), np.stack(masks))
    assert source.problems == ()


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images", "."])
def test_images_are_found_where_people_put_them(tmp_path: Path, place: str) -> None:
    write_coco(tmp_path, [annotation(1, 1)], pictures=False)
    for number in range(1, 5):
        write_picture(tmp_path / place / f"{number:04}.jpg")
    assert open_coco(tmp_path).train.image(0).size == SIZE


def test_json_and_images_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for name, first in (("a", 1), ("b", 50)):
        file = write_coco(tmp_path, [annotation(1, first)], part=name, first=first, count=2)
        file.rename(tmp_path / "labels" / f"{name}.json")
    source = open_coco(tmp_path, json="labels/a.json,labels/b.json", images=["a", "b"])
    assert (len(source.train), len(source.val)) == (2, 2)
    assert source.relative_name(source.val, 0) == "b/0050.jpg"
    with pytest.raises(FileNotFoundError, match=r"json=labels/c\.json: there is no file"):
        open_coco(tmp_path, json="labels/c.json")


def test_classes_of_a_model_number_the_labels(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1), annotation(2, 1, category_id=3)])
    names = ["dog", "zebra", "cat"]
    source = open_coco(tmp_path, class_names=names, held_out=["train2017/0004.jpg"])
    assert source.class_names == ("dog", "zebra", "cat")
    assert source.train.target(0)["labels"].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"classes that are not in the model's classes: 'cat'"):
        open_coco(tmp_path, class_names=["dog", "owl"])


def test_the_second_opening_reads_the_index_and_a_changed_file_is_read_again(
    tmp_path: Path,
) -> None:
    file = write_coco(tmp_path, [annotation(1, 1)])
    first = open_coco(tmp_path).train.target(0)["boxes"].tolist()
    assert open_coco(tmp_path).train.target(0)["boxes"].tolist() == first
    content = json.loads(file.read_text())
    content["annotations"] = []
    file.write_text(json.dumps(content))
    assert sum(len(open_coco(tmp_path).train.target(i)["boxes"]) for i in range(3)) == 0


def test_duplicate_names_of_categories_are_told_apart(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cell"}, {"id": 1, "name": "cell"}]
    write_coco(tmp_path, [annotation(1, 1, category_id=1)], categories=categories)
    source = open_coco(tmp_path)
    assert source.class_names == ("cell", "cell (id 1)")
    assert "two categories are called 'cell'" in source.notes[0]


def test_sizes_that_the_file_lacks_are_read_from_the_images(tmp_path: Path) -> None:
    images = [{"id": i["id"], "file_name": i["file_name"]} for i in images_of(4)]
    write_coco(tmp_path, [annotation(1, 1)], images=images)
    source = open_coco(tmp_path)
    assert source.train.target(0)["boxes"].canvas_size == (30, 40)
    assert source.problems == ()


def test_roboflow_has_an_annotation_file_beside_the_images_of_each_part(tmp_path: Path) -> None:
    for part, first in (("train", 1), ("valid", 10), ("test", 20)):
        file = write_coco(tmp_path, [annotation(1, first)], part=part, first=first, count=2)
        file.rename(tmp_path / part / "_annotations.coco.json")
    source = open_coco(tmp_path)
    assert source.relative_name(source.train, 0) == "train/0001.jpg"
    assert source.relative_name(source.val, 0) == "valid/0010.jpg"
    assert source.notes == ("annotation files that are not used: 'test/_annotations.coco.json'",)


def test_two_entries_of_one_broken_image_are_both_left_out(tmp_path: Path) -> None:
    images = images_of(4)
    images[1]["file_name"] = images[0]["file_name"]
    write_coco(tmp_path, [], images=images)
    (tmp_path / "train2017" / "0001.jpg").write_bytes(b"no image")
    source = open_coco(tmp_path, max_broken=1.0)
    assert len(source.train) + len(source.val) == 2


def test_images_of_a_large_data_set_are_not_decoded_at_the_start(tmp_path: Path) -> None:
    images = images_of(20_001)
    write_coco(tmp_path, [annotation(1, 7)], images=images, pictures=False)
    path = write_picture(tmp_path / "a.jpg")
    (tmp_path / "train2017").mkdir()
    for image in images:
        (tmp_path / "train2017" / image["file_name"]).symlink_to(path)
    path.write_bytes(path.read_bytes()[:-100])
    source = open_coco(tmp_path)
    assert source.problems == ()
    assert source.typical_size == SIZE
    with pytest.raises(BrokenImageError, match="the file is cut off"):
        source.train.image(0)


@pytest.mark.parametrize("area", [0, -3, None, "9"])
def test_an_area_that_the_file_lacks_is_that_of_the_box(tmp_path: Path, area: object) -> None:
    write_coco(tmp_path, [annotation(1, 1, area=area)])
    write_coco(tmp_path, [], part="val2017", first=100, count=2)
    assert open_coco(tmp_path).train.target(0)["area"].tolist() == [80]


def test_ids_may_be_written_as_texts_and_as_floats(tmp_path: Path) -> None:
    categories = [{"id": "10", "name": "dog"}, {"id": "2", "name": "cat"}, {"id": "x", "name": "o"}]
    images = images_of(4)
    images[0]["id"], images[1]["id"], images[2]["id"] = "1", 2.0, "007"
    found = [
        annotation(1, 1, category_id=2, iscrowd="1"),
        annotation(2, 2, category_id=10.0),
        annotation(3, 7, image_id="007", category_id="x"),
    ]
    write_coco(tmp_path, found, images=images, categories=categories)
    write_coco(tmp_path, [], part="val2017", first=100, count=2, categories=categories)
    source = open_coco(tmp_path)
    assert source.class_names == ("cat", "dog", "o")
    targets = [source.train.target(i) for i in range(3)]
    assert [target["labels"].tolist() for target in targets] == [[0], [1], [2]]
    assert [target["image_id"] for target in targets[:2]] == [1, 2]
    assert targets[0]["crowd"].tolist() == [True]
    assert source.category_ids == ("2", "10", "x")
    assert source.problems == ()


def test_a_group_of_categories_without_objects_is_named(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "red", "supercategory": "cells"},
    ]
    write_coco(tmp_path, [annotation(1, 1, category_id=1)], categories=categories)
    source = open_coco(tmp_path)
    assert source.class_names == ("cells", "red")
    assert "category 'cells' has no objects and is the supercategory of others" in source.notes[0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_unicode_form_are_found(
    tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    name = "größe ü.jpg"
    write_coco(tmp_path, [])
    write_picture(tmp_path / "train2017" / unicodedata.normalize(form, name))
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    for other in forms:
        images = images_of(4)
        images[0]["file_name"] = unicodedata.normalize(other, name)
        write_coco(tmp_path, [annotation(1, 1)], images=images, pictures=False)
        source = open_coco(tmp_path, held_out=["train2017/0004.jpg"])
        assert source.problems == ()
        assert source.train.image(0).size == SIZE


@pytest.mark.parametrize("prefix", ["C:\\data\\upload\\", "/data/upload/1/", "../upload/"])
def test_images_with_paths_of_another_computer_are_found_by_their_names(
    tmp_path: Path, prefix: str
) -> None:
    write_coco(tmp_path, [])
    images = [{**image, "file_name": prefix + image["file_name"]} for image in images_of(4)]
    write_coco(tmp_path, [annotation(1, 2)], images=images, pictures=False)
    source = open_coco(tmp_path, held_out=["train2017/0004.jpg"])
    assert [len(source.train.target(i)["boxes"]) for i in range(3)] == [0, 1, 0]
    assert source.train.image(1).size == SIZE
    assert "images are found by their names without folders" in source.notes[0]


def test_images_of_equal_names_in_missing_folders_are_not_confused(tmp_path: Path) -> None:
    write_picture(tmp_path / "train2017" / "0001.jpg")
    images = [{**image, "file_name": f"{image['id']}/0001.jpg"} for image in images_of(2)]
    write_coco(tmp_path, [annotation(1, 2)], images=images, pictures=False)
    with pytest.raises(ValueError, match="none of the 2 images"):
        open_coco(tmp_path)


def test_reading_a_file_needs_little_more_memory_than_its_text(tmp_path: Path) -> None:
    points = (np.random.default_rng(0).random((500, 200)) * 29).round(2)
    found = [annotation(n, 1, segmentation=[part.tolist()]) for n, part in enumerate(points)]
    file = write_coco(tmp_path, found)
    tracemalloc.start()
    try:
        open_coco(tmp_path, "instances", held_out=["train2017/0004.jpg"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * file.stat().st_size


def test_images_that_come_later_under_another_name_are_found(tmp_path: Path) -> None:
    images = [{**image, "file_name": f"C:/data/{image['file_name']}"} for image in images_of(3)]
    images += [{**images_of(1, 4)[0], "file_name": "C:/data/ü.jpg"}]
    write_coco(tmp_path, [annotation(1, 2)], images=images, pictures=False)
    with pytest.raises((ValueError, FileNotFoundError)):
        open_coco(tmp_path)
    for image in images_of(3):
        write_picture(tmp_path / "train2017" / image["file_name"])
    source = open_coco(tmp_path, max_broken=0.5, held_out=["train2017/0003.jpg"])
    assert [len(source.train.target(i)["boxes"]) for i in range(2)] == [0, 1]
    write_picture(tmp_path / "train2017" / unicodedata.normalize("NFD", "ü.jpg"))
    source = open_coco(tmp_path, held_out=["train2017/0003.jpg"])
    assert len(source.train) == 3


def test_a_stored_index_is_not_used_if_none_of_its_images_is_there(tmp_path: Path) -> None:
    images = [{**image, "file_name": f"sub/{image['file_name']}"} for image in images_of(4)]
    write_coco(tmp_path, [annotation(1, 2)], images=images)
    assert len(open_coco(tmp_path, held_out=["train2017/sub/0004.jpg"]).train) == 3
    (tmp_path / "train2017" / "sub").rename(tmp_path / "photos")
    (tmp_path / "train2017").rmdir()
    source = open_coco(tmp_path, images="photos", held_out=["photos/0004.jpg"])
    assert [len(source.train.target(i)["boxes"]) for i in range(3)] == [0, 1, 0]
