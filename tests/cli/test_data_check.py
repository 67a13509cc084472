"""``convattn data check``: every problem of a data set, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from convattn.cli import main
from convattn.data.scenes import write_scenes
from tests.data.class_folders import write_broken, write_classes
from tests.data.objects.object_files import (
    annotation,
    voc_object,
    write_coco,
    write_picture,
    write_voc,
    write_yolo,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_problems(root: Path) -> str:
    """Write a data set with five problems of three kinds."""
    found = [annotation(n, 1, bbox=[2, 3, 0, 5]) for n in range(1, 5)]
    write_coco(root, [*found, annotation(5, 77), annotation(6, 1)])
    (root / "train2017" / "0002.jpg").unlink()
    return f"coco:{root}"


def test_a_table_has_the_problems_by_reason_with_counts_and_first_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", write_problems(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "6 problems" in text
    file = "annotations/instances_train2017.json"
    assert f"    4  the box has no area   {file}, annotation 1: x 2 to 2, y 3 to 8" in lines
    assert f"                             {file}, annotation 3: x 2 to 2, y 3 to 8" in lines
    assert "annotation 4" not in text
    assert f"    1  no such image         {file}, annotation 5: image_id 77" in lines
    assert "train2017/0002.jpg" in text
    assert lines.index(f"    1  no such image         {file}, annotation 5: image_id 77") > 3


def test_json_has_all_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write_problems(tmp_path)
    assert main(["data", "check", name, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == name
    assert found["targets"] == ["boxes"]
    assert found["images"] == 3
    assert found["classes"] == ["cat", "dog", "owl"]
    assert found["counts"] == {
        "the box has no area": 4,
        "no such image": 1,
        "the image is missing": 1,
    }
    assert len(found["problems"]) == 6
    assert {
        "file": "annotations/instances_train2017.json",
        "entry": "annotation 5",
        "reason": "no such image: image_id 77",
    } in found["problems"]


def test_no_problems_is_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square = [[5, 5, 15, 5, 15, 12]]
    write_coco(tmp_path, [annotation(1, 1, segmentation=square)])
    assert main(["data", "check", f"coco:{tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "no problems" in out
    assert "4 images, 3 classes" in out


def test_masks_are_checked_where_there_are_any_unless_boxes_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    square = [[5, 5, 15, 5, 15, 12]]
    found = [annotation(1, 1, segmentation=square), annotation(2, 1, segmentation=[[1, 2, 3, 4]])]
    write_coco(tmp_path, found)
    assert main(["data", "check", f"coco:{tmp_path}"]) == 1
    assert "a polygon has fewer than three points" in capsys.readouterr().out
    assert main(["data", "check", f"coco:{tmp_path}", "--targets", "boxes"]) == 0


def test_images_are_decoded_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    path = tmp_path / "train2017" / "0003.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["data", "check", f"coco:{tmp_path}"]) == 1
    assert "the image cannot be read  train2017/0003.jpg: the file is cut off" in (
        capsys.readouterr().out
    )


def test_a_broken_annotation_file_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path, []).write_text('{"images": [')
    assert main(["data", "check", f"coco:{tmp_path}", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["file"] == "annotations/instances_train2017.json"
    assert problem["reason"].startswith("the file is not JSON: Expecting value: line 1 column 13")


def test_nothing_but_missing_images_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path, [annotation(1, 1)], pictures=False)
    assert main(["data", "check", f"coco:{tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "    4  the image is missing" in out
    assert "none of the 4 images" in out


def test_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path, {"blue": 4, "red": 4})
    assert main(["data", "check", f"folder:{tmp_path}"]) == 0
    write_broken(tmp_path / "red" / "1.png")
    assert main(["data", "check", f"folder:{tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "the image cannot be read  red/1.png: not an image but a text file" in out


def test_voc_and_yolo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = voc_object(box=(4, 4, 4, 9))
    write_voc(tmp_path / "voc", {"train": {"a": [bad]}, "val": {"b": [voc_object()]}})
    assert main(["data", "check", f"voc:{tmp_path / 'voc'}"]) == 1
    assert "Annotations/a.xml, object 1: x 4 to 4, y 4 to 9" in capsys.readouterr().out
    file = write_yolo(tmp_path / "yolo", {"train": {"a": "9 .5 .5 .1 .1"}, "val": {"b": ""}})
    assert main(["data", "check", f"yolo:{file}"]) == 1
    assert "labels/train/a.txt, line 1: 9, and names has 3 classes" in capsys.readouterr().out


def write_masks(root: Path) -> str:
    """Write four images with masks of two classes."""
    for number in range(4):
        write_picture(root / "images" / f"{number}.png", seed=number)
        mask = root / "masks" / f"{number}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.new("L", (40, 30), number % 2).save(mask)
    (root / "classes.txt").write_text("ground\nsky\n")
    return f"masks:{root}"


def test_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write_masks(tmp_path)
    assert main(["data", "check", name]) == 0
    Image.new("L", (30, 30)).save(tmp_path / "masks" / "1.png")
    Image.new("L", (40, 30), 7).save(tmp_path / "masks" / "2.png")
    assert main(["data", "check", name]) == 1
    out = capsys.readouterr().out
    assert "masks/1.png" in out
    assert "masks/2.png" in out
    assert "2 problems" in out
    assert main(["data", "check", name, "ignored=7"]) == 1
    assert "1 problem\n" in capsys.readouterr().out
    assert main(["data", "check", name, "ignored=x"]) == 2


def test_both_kinds_of_annotations_of_voc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "voc", "voc", count=2, val=1, size=64)
    name = f"voc:{tmp_path / 'voc'}"
    assert main(["data", "check", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"] == ["boxes", "segments"]
    (mask,) = (tmp_path / "voc" / "SegmentationClass").glob("*_000001.png")
    mask.write_bytes(mask.read_bytes()[:-30])
    assert main(["data", "check", name]) == 1
    assert mask.name in capsys.readouterr().out


def test_settings_name_files_and_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_coco(tmp_path, [annotation(1, 1)])
    file.rename(tmp_path / "mine.json")
    words = ["data", "check", f"coco:{tmp_path}", "json=mine.json", "images=train2017"]
    assert main(words) == 0
    assert main([*words, "jsn=x"]) == 2
    assert "unknown setting 'jsn'; did you mean 'json'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing", "coco:/nowhere", "folder:/nowhere"])
def test_data_that_is_not_there_is_an_error(name: str) -> None:
    assert main(["data", "check", name]) == 2
