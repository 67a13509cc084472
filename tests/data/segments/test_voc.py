"""Pascal VOC's segmentation masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convattn.data import IGNORED, DataSource, open_dataset
from tests.data.segments.mask_folders import write_pair


def open_voc_segments(root: Path, **options: Any) -> DataSource:
    return open_dataset(f"voc:{root}", targets="segments", **options)


def write(root: Path, values: Sequence[int] = (0, 20, 255), count: int = 5) -> None:
    for number in range(count):
        name = f"2007_{number:06}"
        mask = f"SegmentationClass/{name}.png"
        write_pair(root, f"JPEGImages/{name}.jpg", mask, values, palette=True)
    write_pair(root, "JPEGImages/2007_000999.jpg")  # it has boxes only


def write_list(root: Path, name: str, numbers: Sequence[int]) -> None:
    file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"2007_{number:06}\n" for number in numbers))


@pytest.mark.parametrize("folder", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_images_of_the_lists_are_read(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    write(root)
    write_list(root, "train", [0, 2, 3])
    write_list(root, "val", [4])
    source = open_voc_segments(tmp_path)
    assert len(source.class_names) == 21
    assert source.class_names[0] == "background"
    assert source.class_names[20] == "tvmonitor"
    names = [Path(source.train.path(i)).stem for i in range(len(source.train))]
    assert names == ["2007_000000", "2007_000002", "2007_000003"]
    assert Path(source.val.path(0)).stem == "2007_000004"
    assert source.train.target(0)[0, :3].tolist() == [0, 20, IGNORED]
    assert source.problems == ()


def test_images_with_a_mask_are_split_where_there_are_no_lists(tmp_path: Path) -> None:
    write(tmp_path)
    source = open_voc_segments(tmp_path)
    assert source.split_here
    assert (len(source.train), len(source.val)) == (4, 1)
    assert source.problems == ()
    write_list(tmp_path, "trainval", [0, 1, 2])
    assert len(open_voc_segments(tmp_path).train) == 2


def test_other_lists_are_chosen_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    write_list(tmp_path, "train", [0, 1])
    write_list(tmp_path, "test", [2, 3, 4])
    assert len(open_voc_segments(tmp_path, val_split="test").val) == 3
    with pytest.raises(ValueError, match=r"val_split=holdout.*holdout\.txt"):
        open_voc_segments(tmp_path, val_split="holdout")


def test_an_image_that_a_list_names_but_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    write_list(tmp_path, "train", [0, 1, 2, 77, 999])
    write_list(tmp_path, "val", [4])
    source = open_voc_segments(tmp_path, max_broken=0.5)
    assert sorted(str(problem) for problem in source.problems) == [
        "JPEGImages/2007_000077.jpg: the image is missing",
        "JPEGImages/2007_000999.jpg: the image has no mask",
    ]
    assert len(source.train) == 3


@pytest.mark.parametrize("text", ["background\ncup\n", "cup\n", "_background_\ncup\n"])
def test_the_classes_may_be_those_of_a_list(tmp_path: Path, text: str) -> None:
    write(tmp_path, (0, 1))
    (tmp_path / "classes.txt").write_text(text)
    source = open_voc_segments(tmp_path)
    assert source.class_names[1:] == ("cup",)
    assert source.class_names[0].strip("_") == "background"


def test_the_list_of_an_annotation_tool_is_read(tmp_path: Path) -> None:
    write(tmp_path, (0, 1))
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncup:128,0,0::\n"
    )
    assert open_voc_segments(tmp_path).class_names == ("background", "cup")


def test_several_data_sets_in_a_folder_are_an_error(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write(tmp_path / year)
    with pytest.raises(ValueError, match="'VOC2007', 'VOC2012'; give one"):
        open_voc_segments(tmp_path)


def test_a_folder_without_masks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder SegmentationClass"):
        open_voc_segments(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_voc_segments(tmp_path / "none")
