from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.cli import main
from tests.data.class_folders import write_classes
from tests.data.objects.object_files import annotation, write_coco

SQUARE = [2, 3, 12, 3, 12, 11, 2, 11]


def coco(folder: Path, *, masks: bool = True) -> Path:
    """Write four training and four other images, each with a dog, and the first with an owl."""
    more = {"segmentation": [SQUARE]} if masks else {}
    for part, first in (("train2017", 1), ("val2017", 11)):
        entries = [annotation(number, number, **more) for number in range(first, first + 4)]
        entries.append(annotation(99, first, category_id=18, **more))
        write_coco(folder, entries, part=part, first=first)
    return folder


def show(*words: str | Path) -> int:
    return main(["data", "show", *map(str, words)])


def page(folder: Path) -> np.ndarray:
    (path,) = folder.iterdir()
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_page_and_the_counts_of_objects_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco(tmp_path / "coco")
    assert show(f"coco:{data}", "--out", tmp_path / "pages") == 0
    assert capsys.readouterr().out.splitlines() == [
        "class  images  objects",
        "cat         0        0",
        "dog         4        4",
        "owl         1        1",
        "",
        "counted in 4 images",
        f"4 images on 1 page: {tmp_path / 'pages' / 'convattn-page-01.png'}",
    ]
    assert page(tmp_path / "pages").shape[1] > 4 * 384


def test_images_of_one_class_and_of_the_other_part_are_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco(tmp_path / "coco")
    words = (f"coco:{data}", "--out", tmp_path / "pages", "--split", "val")
    assert show(*words, "--class", "owl") == 0
    assert "1 image on 1 page" in capsys.readouterr().out
    assert show(*words, "--count", "2") == 0
    assert "2 images on 1 page" in capsys.readouterr().out
    assert show(*words, "--class", "cat") == 0
    assert "no images to show of class cat" in capsys.readouterr().out
    assert show(*words, "--class", "owls") == 2
    assert "the data has no class 'owls'; did you mean 'owl'?" in capsys.readouterr().err


def test_masks_are_drawn_where_the_data_has_them_and_boxes_on_request(tmp_path: Path) -> None:
    with_masks, without = coco(tmp_path / "a"), coco(tmp_path / "b", masks=False)
    assert show(f"coco:{with_masks}", "--out", tmp_path / "masks") == 0
    assert show(f"coco:{with_masks}", "--out", tmp_path / "boxes", "--targets", "boxes") == 0
    assert show(f"coco:{without}", "--out", tmp_path / "only_boxes") == 0
    masks, boxes, only = (page(tmp_path / name) for name in ("masks", "boxes", "only_boxes"))
    assert np.abs(masks - boxes).max() > 20
    assert (boxes == only).all()


def test_problems_show_the_images_that_have_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco(tmp_path / "coco", masks=False)
    entries = [annotation(1, 1), annotation(2, 2, bbox=[2, 3, 0, 8]), annotation(3, 4)]
    write_coco(data, entries)
    (data / "train2017" / "0003.jpg").unlink()
    assert show(f"coco:{data}", "--out", tmp_path / "pages", "--problems") == 0
    assert "2 images on 1 page" in capsys.readouterr().out
    assert show(f"coco:{data}", "--out", tmp_path / "pages", "--problems", "--augmented") == 2
    assert "leave --augmented out" in capsys.readouterr().err


def test_classes_of_folders_are_shown_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "pets", {"cat": 6, "dog": 6})
    assert show(f"folder:{data}", "--out", tmp_path / "pages") == 0
    assert capsys.readouterr().out.startswith("class  images\n")


def test_a_recipe_that_asks_for_weights_shows_data_without_them(tmp_path: Path) -> None:
    data = coco(tmp_path / "coco")
    words = (f"coco:{data}", "--out", tmp_path / "pages", "--method", "mask_rcnn")
    assert show(*words, "--recipe", "coco_1x") == 0


@pytest.mark.slow
def test_augmented_images_are_those_of_a_training(tmp_path: Path) -> None:
    data = coco(tmp_path / "coco")
    words = (f"coco:{data}", "--out", tmp_path / "pages", "--augmented")
    assert show(*words, "--recipe", "small", "img_size=64", "hflip=0") == 0
    first = page(tmp_path / "pages")
    assert show(*words, "--recipe", "small", "img_size=64", "hflip=1") == 0
    assert np.abs(first - page(tmp_path / "pages")).max() > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say where to write: --out DIR"),
        (["--out", "x", "--split", "test"], "unknown --split 'test'"),
        (["--out", "x", "--count", "0"], "--count must be at least 1, got 0"),
        (["--out", "x", "--targets", "masks"], "unknown --targets 'masks'"),
        (["--out", "x", "--method", "upernett"], "unknown method 'upernett'"),
        (["--out", "x", "batchsize=3"], "batchsize"),
    ],
)
def test_a_wrong_argument_is_named(
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert show("coco:nowhere", *words) == 2
    assert message in capsys.readouterr().err


def test_data_of_an_unknown_format_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show("kitti:x", "--out", tmp_path / "pages") == 2
    assert "unknown data 'kitti:x'" in capsys.readouterr().err
