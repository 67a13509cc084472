from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from convattn.cli.data_problems import problem_images
from convattn.data import BrokenFile, BrokenImageError, DataSource, FileImages, Problem
from tests.data.class_folders import write_image


class Boxes(FileImages):
    def target(self, index: int) -> Any:
        return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def source(root: Path) -> DataSource:
    paths = [str(write_image(root / "train" / f"{number}.png")) for number in range(4)]
    return DataSource(
        name="coco:x",
        class_names=("cat",),
        train=Boxes(paths[:3], [0] * 3),
        val=Boxes(paths[3:], [0]),
        split_here=True,
        root=str(root),
        broken=(BrokenFile(str(root / "train" / "gone.png"), "there is no such file"),),
    )


def write_json(root: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "1.png"}, {"id": 9, "file_name": "sub/3.png"}],
        "annotations": [{"id": 17, "image_id": 7}, {"image_id": 9}, {"id": 3, "image_id": 99}],
    }
    (root / "a.json").write_text(json.dumps(content))


def test_problems_of_entries_of_a_json_file_belong_to_the_images_of_the_entries(
    tmp_path: Path,
) -> None:
    data = source(tmp_path)
    write_json(tmp_path)
    problems = [
        Problem("a.json", "annotation 17", "the box has no area"),
        Problem("a.json", "image 7", "duplicate id"),
        Problem("a.json", "annotation at 1", "unknown class"),
        Problem("a.json", "annotation 3", "no such image: image_id 99"),
    ]
    images, read = problem_images(data, problems, 10)
    first, second, third = images
    assert Path(first.path).name == "1.png"
    assert Path(second.path).name == "3.png"
    found = read(first)
    assert found.caption == ("train/1.png", "annotation 17: the box has no area (and 1 more)")
    assert found.target is not None
    with pytest.raises(BrokenImageError, match="annotation 3: no such image"):
        read(third)


def test_problems_of_other_files_belong_to_the_image_of_the_same_name(tmp_path: Path) -> None:
    data = source(tmp_path)
    extra = write_image(tmp_path / "train" / "extra.png")
    problems = [
        Problem("labels/2.txt", "object 3", "the box has no area"),
        Problem("train/0.png", "", "the mask is missing"),
        Problem("train/gone.png", "", "the image is missing"),
        Problem("train/extra.png", "", "the mask has another size"),
    ]
    images, read = problem_images(data, problems, 10)
    label, mask, gone, left_out = images
    assert Path(label.path).name == "2.png"
    assert read(mask).caption == ("train/0.png", "the mask is missing")
    with pytest.raises(BrokenImageError, match="the image is missing"):
        read(gone)
    found = read(left_out)
    assert found.target is None
    assert found.image.size == Image.open(extra).size


def test_a_damaged_json_file_is_shown_itself(tmp_path: Path) -> None:
    data = source(tmp_path)
    (tmp_path / "a.json").write_text("{")
    images, read = problem_images(data, [Problem("a.json", "", "the file is not JSON")], 10)
    (item,) = images
    with pytest.raises(BrokenImageError, match="the file is not JSON"):
        read(item)


def test_at_most_the_given_number_of_images_is_shown(tmp_path: Path) -> None:
    problems = [Problem(f"train/{number}.png", "", "x") for number in range(4)]
    images, _ = problem_images(source(tmp_path), problems, 2)
    assert len([*images]) == 2
