from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from convattn.data import DataSource, open_dataset
from convattn.runs.data_record import DataRecord
from convattn.runs.files import DamagedFileError
from convattn.runs.folder import RunFolder
from tests.data.folders import write_classes, write_image


def opened(folder: Path) -> DataSource:
    return open_dataset(f"folder:{folder}", val_fraction=0.25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "colors", {"red": 8, "blue": 8})


def test_a_record_counts_images_and_names_those_held_out(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    assert record.class_names == ("blue", "red")
    assert (record.train, record.val, record.val_per_class) == (12, 4, (2, 2))
    assert len(record.held_out) == 4
    assert all((folder / name).is_file() for name in record.held_out)


def test_a_record_survives_its_file_whatever_the_names(tmp_path: Path, folder: Path) -> None:
    for number in range(8):
        name = os.fsdecode(b"caf\xe9" + str(number).encode() + b".png")
        (folder / "red" / f"{number}.png").rename(folder / "red" / name)
    record = DataRecord.of(opened(folder))
    run = RunFolder(tmp_path)
    assert run.read_data() is None
    run.write_data(record)
    assert run.read_data() == record


def test_a_folder_that_moved_is_the_same(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    moved = folder.rename(folder.with_name("moved"))
    assert record.compare(opened(moved)) == []


def test_added_images_are_counted(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    write_classes(folder, {"red": 8}, first=100)
    notes = record.compare(opened(folder))
    assert any("12 images to learn from, the data has 18" in note for note in notes)


def test_held_out_files_that_are_gone_are_named(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    (folder / record.held_out[0]).unlink()
    notes = record.compare(opened(folder))
    assert f"the data has lost 1 held-out file of the run: '{record.held_out[0]}'" in notes


def test_changed_classes_are_named(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    (folder / "blue").rename(folder / "sky")
    notes = record.compare(opened(folder))
    assert "the data no longer has the classes 'blue'" in notes
    assert "the data has the new classes 'sky'" in notes


def test_a_file_that_was_replaced_changes_the_digest(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    write_image(folder / "red" / "0.png", (1, 2, 3), seed=77)
    with (folder / "red" / "0.png").open("ab") as file:
        file.write(b"\0")
    assert record.compare(opened(folder)) == [
        "names or sizes of the data's files have changed since the run began"
    ]


def test_data_that_is_not_in_files_has_no_digest() -> None:
    source = open_dataset("digits")
    record = DataRecord.of(source)
    assert (record.digest, record.held_out) == ("", ())
    assert record.compare(source) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", 3), ("train", "12"), ("val", True), ("held_out", [1]), ("class_names", "red")],
)
def test_a_damaged_record_is_named(tmp_path: Path, folder: Path, key: str, value: Any) -> None:
    run = RunFolder(tmp_path)
    run.write_data(DataRecord.of(opened(folder)))
    values = json.loads((tmp_path / "data.json").read_text())
    for broken in ({**values, key: value}, {k: v for k, v in values.items() if k != key}):
        (tmp_path / "data.json").write_text(json.dumps(broken))
        with pytest.raises(DamagedFileError, match=rf"data\.json is damaged: .*'{key}'.*restore"):
            run.read_data()
