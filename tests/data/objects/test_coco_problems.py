"""Problems of COCO's annotation files and their images: each one is named and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convattn.data import BrokenImageError, DataSource, Problem, UnusableDataError, open_dataset
from tests.data.class_folders import write_broken
from tests.data.objects.object_files import CATEGORIES, annotation, images_of, write_coco

JSON = "annotations/instances_train2017.json"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))


def open_all(root: Path, targets: str = "boxes", **options: Any) -> DataSource:
    options = {"max_broken": 1.0, "held_out": ["train2017/0004.jpg"], **options}
    return open_dataset(f"coco:{root}", targets=targets, **options)  # type: ignore[arg-type]


def without(key: str, **values: Any) -> dict[str, Any]:
    return {name: v for name, v in annotation(5, 1, **values).items() if name != key}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (annotation(5, 99), "no such image: image_id 99"),
        (annotation(5, 1, image_id=[1]), "no such image: image_id [1]"),
        (without("image_id"), "no such image: image_id None"),
        (annotation(5, 1, category_id=1), "unknown class: category_id 1"),
        (annotation(1, 1), "duplicate id: an earlier annotation has it too"),
        (annotation(5, 1, bbox=[4, 4, 0, 9]), "the box has no area: x 4 to 4, y 4 to 13"),
        (annotation(5, 1, bbox=[4, 4, -3, 9]), "the box has no area: x 4 to 1, y 4 to 13"),
        (annotation(5, 1, bbox=[4, 4, 1e-9, 9]), "the box has no area: x 4 to 4, y 4 to 13"),
        (
            annotation(5, 1, bbox=[30, 4, 21, 9]),
            "most of the box lies beyond the image: x 30 to 51, y 4 to 13, in an image of 40 x 30 "
            "pixels",
        ),
        (
            annotation(5, 1, bbox=[40, 4, 0.5, 9]),
            "most of the box lies beyond the image: x 40 to 40.5, y 4 to 13, in an image of 40 x "
            "30 pixels",
        ),
        (
            annotation(5, 1, bbox=[float("nan"), 4, 5, 9]),
            "a number is NaN or infinite: x nan to nan, y 4 to 13",
        ),
        (
            annotation(5, 1, bbox=[1, 4, float("inf"), 9]),
            "a number is NaN or infinite: x 1 to inf, y 4 to 13",
        ),
        (
            annotation(5, 1, bbox=[10**400, 2, 3, 4]),
            f"bbox is not x, y, width, height: [1{58 * '0'}",
        ),
        (annotation(5, 1, bbox=[1, 2, 3]), "bbox is not x, y, width, height: [1, 2, 3]"),
        (annotation(5, 1, bbox=["1", 2, 3, 4]), "bbox is not x, y, width, height: ['1', 2, 3, 4]"),
        (without("bbox"), "bbox is not x, y, width, height: None"),
        ("text", "the annotation is not an object of JSON"),
    ],
)
def test_an_annotation_with_a_problem_is_named_and_left_out(
    tmp_path: Path, entry: Any, reason: str
) -> None:
    write_coco(tmp_path, [annotation(1, 1), entry])
    source = open_all(tmp_path)
    name = f"annotation {entry['id']}" if isinstance(entry, dict) else "annotation at 1"
    assert source.problems == (Problem(JSON, name, reason),)
    assert len(source.train.target(0)["boxes"]) == 1
    assert (
        f"1 of 2 objects is left out: {JSON}, {name} ({reason.partition(': ')[0]})"
        in source.notes[0]
    )
    assert f"`convattn data check coco:{tmp_path}`" in source.notes[0]


SQUARE = [5, 5, 15, 5, 15, 12, 5, 12]
RUNS = {"size": [30, 40], "counts": [1200]}


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([[1, 1, 5, 5]], "a polygon has fewer than three points: 2"),
        ([[1, 1, 5, 5, 9]], "a polygon has an odd number of coordinates: 5"),
        ([[1, 1, 5, 5, 9, float("nan")]], "a number is NaN or infinite: in a polygon"),
        ([[1, 1, 5, 5, 9, "9"]], "a polygon has a coordinate that is not a number"),
        (["abc"], "a polygon is not a list of coordinates: abc"),
        (
            [[30, 1, 60, 1, 60, 9, 30, 9]],
            "most of a polygon lies beyond the image: it reaches 20 pixels beyond",
        ),
        (
            [[1e200, 1, 1e201, 1, 60, 9, 30, 9]],
            "most of a polygon lies beyond the image: it reaches 1e+201 pixels beyond",
        ),
        ("abc", "the mask is neither a list of polygons nor run lengths with size and counts"),
        (
            {**RUNS, "size": [40, 30]},
            "the mask has another size than the image: size [40, 30] instead of [30, 40]",
        ),
        (
            {**RUNS, "counts": [1200, 1]},
            "the run lengths of the mask are damaged: they are of 1,201 pixels instead of 1,200",
        ),
        (
            {**RUNS, "counts": [-1, 1201]},
            "the run lengths of the mask are damaged: they cannot be read",
        ),
        (
            {**RUNS, "counts": "zzzzzzzzz"},
            "the run lengths of the mask are damaged: they cannot be read",
        ),
        (None, "the object has no mask"),
    ],
)
def test_a_mask_with_a_problem_is_named_and_its_box_is_kept_for_boxes(
    tmp_path: Path, mask: Any, reason: str
) -> None:
    found = [annotation(1, 1, segmentation=[SQUARE]), annotation(2, 1, segmentation=mask)]
    write_coco(tmp_path, found)
    source = open_all(tmp_path, "instances")
    assert source.problems == (Problem(JSON, "annotation 2", reason),)
    assert source.train.target(0)["masks"].shape == (1, 30, 40)
    boxes = open_all(tmp_path)
    assert boxes.problems == ()
    assert len(boxes.train.target(0)["boxes"]) == 2


def test_a_polygon_of_two_points_beside_a_whole_one_leaves_the_object(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1, segmentation=[SQUARE, [1, 1, 2, 2]])])
    source = open_all(tmp_path, "instances")
    assert [problem.kind for problem in source.problems] == [
        "a polygon has fewer than three points"
    ]
    assert source.train.target(0)["masks"].shape == (1, 30, 40)


def test_a_file_of_boxes_alone_has_no_masks(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    with pytest.raises(ValueError, match="has no masks of objects, only boxes"):
        open_all(tmp_path, "instances")


def test_boxes_beyond_the_image_by_rounding_are_clipped_and_counted(tmp_path: Path) -> None:
    found = [annotation(1, 1, bbox=[-0.5, -1, 20, 20]), annotation(2, 1, bbox=[20, 20, 21, 10.4])]
    write_coco(tmp_path, found)
    source = open_all(tmp_path)
    assert source.train.target(0)["boxes"].tolist() == [[0, 0, 19.5, 19], [20, 20, 40, 30]]
    assert source.problems == ()
    assert "2 boxes reach beyond the image by at most a pixel" in source.notes[0]


def test_a_box_of_which_half_lies_in_the_image_is_cut_and_used(tmp_path: Path) -> None:
    boxes = [[30, 4, 20, 9], [2, 3, 5, 5]]
    write_coco(tmp_path, [annotation(n, 1, bbox=box) for n, box in enumerate(boxes)])
    source = open_all(tmp_path, max_broken=0.0)
    target = source.train.target(0)
    assert target["boxes"].tolist() == [[30, 4, 40, 13], [2, 3, 7, 8]]
    assert [(problem.entry, problem.kind) for problem in source.problems] == [
        ("annotation 0", "the box is cut at the edge of the image")
    ]
    assert (
        f"1 object reaches beyond the image and is cut at its edge, such as {JSON}"
        in (source.notes[0])
    )


def test_a_polygon_of_which_half_lies_in_the_image_is_cut_and_used(tmp_path: Path) -> None:
    shape = [30, 5, 49, 5, 49, 12, 30, 12]
    write_coco(tmp_path, [annotation(1, 1, bbox=[30, 5, 19, 7], segmentation=[shape])])
    source = open_all(tmp_path, "instances", max_broken=0.0)
    mask = source.train.target(0)["masks"][0]
    assert mask[5:12, 30:].all()
    assert int(mask.sum()) == 70
    assert [problem.kind for problem in source.problems] == [
        "a polygon is cut at the edge of the image",
        "the box is cut at the edge of the image",
    ]
    assert "1 object reaches beyond" in source.notes[0]


def test_corners_in_place_of_width_and_height_are_found_by_the_file_as_a_whole(
    tmp_path: Path,
) -> None:
    corners = [[2, 2, 9, 9], [10, 10, 39, 29], [25, 5, 40, 20], [5, 18, 30, 30], [20, 3, 38, 9]]
    write_coco(tmp_path, [annotation(n, 1, bbox=box) for n, box in enumerate(corners)])
    with pytest.raises(UnusableDataError, match="nearly all fit as x1, y1, x2, y2") as error:
        open_all(tmp_path)
    assert {problem.kind for problem in error.value.problems} == {
        "bbox is x1, y1, x2, y2 instead of x, y, width, height"
    }
    assert len(error.value.problems) == 4


def test_a_few_boxes_beyond_the_image_are_not_taken_for_corners(tmp_path: Path) -> None:
    boxes = [[2, 2, 9, 9], [10, 10, 4, 4], [25, 5, 10, 20], [5, 18, 30, 10], [20, 3, 41, 9]]
    write_coco(tmp_path, [annotation(n, 1, bbox=box) for n, box in enumerate(boxes)])
    source = open_all(tmp_path)
    assert [(problem.entry, problem.kind) for problem in source.problems] == [
        ("annotation 4", "most of the box lies beyond the image")
    ]


@pytest.mark.parametrize(
    ("change", "entry", "reason"),
    [
        ({"id": 1}, "image 1", "duplicate id: two images have it, here 0002.jpg"),
        ({"file_name": None}, "image 2", "the image has no id and file_name"),
        ({"file_name": "\ud800.jpg"}, "image 2", "the image has no id and file_name"),
        ({"file_name": "./0001.jpg"}, "image 2", "duplicate file name: image 1 is 0001.jpg too"),
    ],
)
def test_an_image_entry_with_a_problem_is_named(
    tmp_path: Path, change: dict[str, Any], entry: str, reason: str
) -> None:
    write_coco(tmp_path, [])
    images = images_of(4)
    images[1] |= change
    write_coco(tmp_path, [annotation(1, 1)], images=images, pictures=False)
    source = open_all(tmp_path)
    assert source.problems == (Problem(JSON, entry, reason),)
    assert len(source.train) + len(source.val) == 3


def test_an_annotation_of_an_image_that_is_left_out_says_so(tmp_path: Path) -> None:
    images = images_of(4)
    images[1]["file_name"] = "0001.jpg"
    write_coco(tmp_path, [annotation(1, 2)], images=images)
    assert [problem.reason for problem in open_all(tmp_path).problems] == [
        "duplicate file name: image 1 is 0001.jpg too",
        "its image is left out: image_id 2",
    ]


def test_missing_and_broken_images_and_those_of_another_size_are_named(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    (tmp_path / "train2017" / "0001.jpg").unlink()
    write_broken(tmp_path / "train2017" / "0002.jpg")
    Image.new("RGB", (30, 40)).save(tmp_path / "train2017" / "0003.jpg")
    write_coco(tmp_path, [], part="val2017", count=1, first=4)
    source = open_all(tmp_path, held_out=None, images=["train2017", "val2017"])
    first, second, third = source.problems
    assert first == Problem("train2017/0001.jpg", "", f"the image is missing: {JSON} names it")
    assert second.file == "train2017/0002.jpg"
    assert second.reason == "the image cannot be read: not an image but a text file"
    assert third.reason == (
        "the image has another size than its annotations say: 30 x 40 instead of 40 x 30 pixels"
    )
    assert [file.path for file in source.broken] == [
        str(tmp_path / "train2017" / f"000{n}.jpg") for n in (1, 2, 3)
    ]
    assert len(source.train) == 1
    with pytest.raises(UnusableDataError, match=r"3 of 4 images in coco:.* cannot be used"):
        open_all(tmp_path, held_out=None, max_broken=0.5)


def test_an_image_of_another_size_that_comes_later_is_broken(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    source = open_all(tmp_path)
    Image.new("RGB", (30, 40)).save(tmp_path / "train2017" / "0001.jpg")
    with pytest.raises(BrokenImageError, match="30 x 40 instead of 40 x 30"):
        source.train.image(0)


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
@pytest.mark.parametrize("annotated", ["upright", "as stored"])
def test_a_turned_photograph_is_read_as_it_was_annotated(
    tmp_path: Path, orientation: int, annotated: str
) -> None:
    write_coco(tmp_path, [])
    path = tmp_path / "train2017" / "0001.jpg"
    stored = Image.new("L", (40, 30))
    stored.paste(255, (0, 0, 10, 8))  # a white corner tells how the image lies
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(path, exif=exif)
    images = images_of(4)
    turned = orientation > 3
    if annotated == "upright" and turned:
        images[0] |= {"width": 30, "height": 40}
    write_coco(tmp_path, [], images=images, pictures=False)
    image = open_all(tmp_path).train.image(0)
    assert image.size == ((30, 40) if annotated == "upright" and turned else (40, 30))
    is_white = image.getpixel((3, 3)) > 200  # type: ignore[operator]
    assert is_white == (orientation == 5 or (annotated == "as stored" and turned))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', r"the file is not JSON: Expecting value: line 1 column 13"),
        ("[]", "the file holds a list, as results do"),
        ("{}", "the file has no list 'images'"),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "has no categories"),
        (json.dumps({"images": [], "categories": CATEGORIES}), "has no list 'annotations'"),
    ],
)
def test_a_file_that_is_no_annotation_file_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write_coco(tmp_path, [])
    file.write_text(text)
    with pytest.raises(UnusableDataError, match=message) as error:
        open_all(tmp_path)
    assert str(file) in str(error.value)
    assert error.value.problems[0].file == JSON


def test_all_images_missing_asks_for_their_folder(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1)], pictures=False)
    with pytest.raises(UnusableDataError, match=r"none of the 4 images .* images=FOLDER"):
        open_all(tmp_path)


def test_more_broken_objects_than_allowed_are_an_error(tmp_path: Path) -> None:
    found = [annotation(n, 1, bbox=[1, 1, n % 2, 5]) for n in range(4)]
    write_coco(tmp_path, found)
    with pytest.raises(UnusableDataError, match=r"2 of 4 objects .* \(50.0%, at most 40.0%"):
        open_all(tmp_path, max_broken=0.4)
    assert len(open_all(tmp_path, max_broken=0.5).problems) == 2


def test_problems_are_the_same_when_the_index_is_read_again(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 1), annotation(1, 2)])
    assert open_all(tmp_path).problems == open_all(tmp_path).problems != ()


def test_a_folder_of_a_file_for_each_image_asks_for_an_export(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.json").write_text('{"shapes": []}')
    with pytest.raises(
        ValueError, match=r"12 JSON files, such as 0\.json, and COCO's format has one"
    ):
        open_all(tmp_path)
    with pytest.raises(UnusableDataError, match="COCO's format has the lists images, annotations"):
        open_all(tmp_path, json="0.json")
