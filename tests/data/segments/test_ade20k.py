"""ADE20K: value 0 is ignored, the classes start at 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convattn.data import IGNORED, DataSource, UnusableDataError, open_dataset
from tests.data.segments.mask_folders import write_pair


def open_ade20k(root: Path, **options: Any) -> DataSource:
    return open_dataset(f"ade20k:{root}", targets="segments", **options)


def write(root: Path, values: tuple[int, ...] = (0, 1, 150)) -> None:
    for part in ("training", "validation"):
        for number in range(2):
            name = f"{part}/ADE_{part[:5]}_{number:08}"
            write_pair(root, f"images/{name}.jpg", f"annotations/{name}.png", values)


@pytest.mark.parametrize("folder", [".", "ADEChallengeData2016"])
def test_the_classes_are_the_150_of_the_benchmark(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder)
    source = open_ade20k(tmp_path)
    assert len(source.class_names) == 150
    assert source.class_names[:2] == ("wall", "building")
    assert source.class_names[-1] == "flag"
    assert len(source.train) == len(source.val) == 2
    assert not source.split_here
    assert source.train.target(0)[0, :3].tolist() == [IGNORED, 0, 149]
    assert "images/training/ADE_train_00000000.jpg" in source.train.path(0)


def test_the_names_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, (0, 1, 3))
    file = tmp_path / "objectInfo150.txt"
    file.write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        "1\t0.1576\t11664\t1172\t1\twall\n"
        "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
        "3\t0.0878\t8265\t796\t1\tdoor;double door\n"
    )
    source = open_ade20k(tmp_path)
    assert source.class_names == ("wall", "building", "door")
    assert source.val.target(1)[0, :3].tolist() == [IGNORED, 0, 2]
    file.write_text(file.read_text().replace("door;", "wall;"))
    assert open_ade20k(tmp_path).class_names[::2] == ("wall", "wall;double door")
    file.write_text("wall\nbuilding\n")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt must have a header"):
        open_ade20k(tmp_path)


def test_a_value_beyond_the_classes_is_named(tmp_path: Path) -> None:
    write(tmp_path, (0, 1, 151))
    with pytest.raises(UnusableDataError, match=r"151.* the values 1 to 150, ignored is 0"):
        open_ade20k(tmp_path)


def test_images_are_held_out_where_there_is_no_validation_part(tmp_path: Path) -> None:
    for number in range(5):
        write_pair(tmp_path, f"images/training/{number}.jpg", f"annotations/training/{number}.png")
    source = open_ade20k(tmp_path)
    assert source.split_here
    assert (len(source.train), len(source.val)) == (4, 1)
