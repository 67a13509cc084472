from __future__ import annotations

import json
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convattn.data import DataSource, ImageSet, Subset, open_dataset
from convattn.runs.data_record import DataRecord
from convattn.runs.files import DamagedFileError
from convattn.runs.folder import RunFolder
from tests.data.class_folders import write_broken, write_classes, write_image
from tests.data.objects.object_files import annotation, images_of, write_coco


def opened(folder: Path) -> DataSource:
    return open_dataset(f"folder:{folder}", val_fraction=0.25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "colors", {"red": 8, "blue": 8})


def names(source: DataSource, images: ImageSet) -> list[str]:
    return [source.relative_name(images, index) for index in range(len(images))]


def reopened(folder: Path, record: DataRecord) -> DataSource:
    source = open_dataset(f"folder:{folder}", val_fraction=0.25, **record.options())
    return record.restore(source)


def test_a_record_counts_images_and_names_them(folder: Path) -> None:
    source = opened(folder)
    record = DataRecord.of(source)
    assert record.class_names == ("blue", "red")
    assert (record.train, record.val, record.split_here) == (12, 4, True)
    assert list(record.held_out) == names(source, source.val)
    assert list(record.train_files) == names(source, source.train)


def test_a_record_survives_its_file_whatever_the_names(tmp_path: Path, folder: Path) -> None:
    for number in range(8):
        name = os.fsdecode(b"caf\xe9" + str(number).encode() + b".png")
        (folder / "red" / f"{number}.png").rename(folder / "red" / name)
    record = DataRecord.of(opened(folder))
    run = RunFolder(tmp_path)
    assert run.read_data() is None
    run.write_data(record)
    assert run.read_data() == record


def test_a_folder_that_moved_is_restored_without_a_note(folder: Path) -> None:
    before = opened(folder)
    record = DataRecord.of(before)
    after = reopened(folder.rename(folder.with_name("moved")), record)
    for part in ("train", "val"):
        assert names(after, getattr(after, part)) == names(before, getattr(before, part))
    assert after.notes == ()


def test_added_images_are_in_neither_part_and_are_counted(folder: Path) -> None:
    before = opened(folder)
    record = DataRecord.of(before)
    write_classes(folder, {"red": 8}, first=100)
    write_image(folder / "blue" / "!.png")  # is listed before the others
    after = reopened(folder, record)
    for part in ("train", "val"):
        assert names(after, getattr(after, part)) == names(before, getattr(before, part))
    assert [note for note in after.notes if "9 images were added" in note]


def test_an_own_held_out_part_is_restored_too(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3)):
        write_classes(tmp_path / part, {"red": count, "blue": count})
    before = opened(tmp_path)
    record = DataRecord.of(before)
    assert (record.split_here, len(record.held_out)) == (False, 6)
    write_classes(tmp_path / "val", {"red": 2}, first=100)
    (tmp_path / "val" / "blue" / "0.png").unlink()
    after = reopened(tmp_path, record)
    assert names(after, after.val) == [n for n in record.held_out if n != "val/blue/0.png"]
    assert [note.split(":")[0] for note in after.notes] == [
        "2 images were added to folder",
        "1 image that was held out is no longer in folder",
    ]


def test_an_image_of_both_parts_keeps_the_objects_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path / "cache"))
    write_coco(tmp_path, [annotation(1, 1)], part="train", count=2)
    found = [annotation(1, 2), annotation(2, 2)]
    write_coco(tmp_path, found, part="val", images=images_of(2, 2), pictures=False)
    shutil.copy(tmp_path / "train" / "0001.jpg", tmp_path / "train" / "0003.jpg")

    def opened_boxes() -> DataSource:
        return open_dataset(f"coco:{tmp_path}", targets="boxes", images="train")

    restored = DataRecord.of(opened_boxes()).restore(opened_boxes())
    parts = (restored.train, restored.val)
    counts = [[len(part.target(i)["boxes"]) for i in range(len(part))] for part in parts]
    assert counts == [[1, 0], [2, 0]]
    assert restored.notes == opened_boxes().notes


def test_a_held_out_part_that_vanished_is_an_error(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_classes(tmp_path / part, {"red": 6, "blue": 6})
    record = DataRecord.of(opened(tmp_path))
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(ValueError, match="no longer has the held-out part of the run"):
        reopened(tmp_path, record)


def test_images_that_are_gone_are_named_once(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    gone = [record.held_out[0], record.train_files[3]]
    for name in gone:
        (folder / name).unlink()
    notes = "\n".join(reopened(folder, record).notes)
    assert [notes.count(f"'{name}'") for name in gone] == [1, 1]


def test_images_that_broke_are_not_gone(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    write_broken(folder / record.train_files[0])
    source = open_dataset(f"folder:{folder}", max_broken=0.5, **record.options())
    after = record.restore(source)
    assert len(after.train) == 11
    assert not any("no longer" in note for note in after.notes)


def test_images_of_which_none_is_there_are_an_error(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    for name in record.train_files:
        (folder / name).rename(folder / f"{name}.other.png")
    with pytest.raises(ValueError, match="has none of the images that the run trains on"):
        reopened(folder, record)


def test_names_are_compared_in_one_form_of_unicode(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        for number in range(8):
            name = unicodedata.normalize(form, "größe")
            write_image(tmp_path / form / name / f"{name}{number}.png", seed=number)
            write_image(tmp_path / form / "blue" / f"{number}.png", seed=number)
    record = DataRecord.of(opened(tmp_path / "NFC"))
    after = reopened(tmp_path / "NFD", record)
    assert (len(after.train), len(after.val), after.notes) == (12, 4, ())
    assert record.is_of(opened(tmp_path / "NFD"))


def test_data_is_recognised_by_its_held_out_files(folder: Path, tmp_path: Path) -> None:
    record = DataRecord.of(opened(folder))
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    write_classes(moved, {"red": 8}, first=100)
    assert record.is_of(opened(moved))
    record.check_moved(opened(moved))
    with (moved / record.held_out[0]).open("ab") as file:
        file.write(b"0")
    assert not record.is_of(opened(moved))
    (moved / record.held_out[0]).unlink()
    assert not record.is_of(opened(moved))
    with pytest.raises(ValueError, match=f"lacks 1 of 4 images .*'{record.held_out[0]}'"):
        record.check_moved(opened(moved))


def test_a_file_that_was_replaced_is_told(folder: Path) -> None:
    record = DataRecord.of(opened(folder))
    with (folder / "red" / "0.png").open("ab") as file:
        file.write(b"0")
    (note,) = reopened(folder, record).notes
    assert "have other sizes than when the run began" in note


def test_data_that_is_not_in_a_folder_is_compared_by_its_numbers() -> None:
    source = open_dataset("digits")
    record = DataRecord.of(source)
    assert (record.train_files, record.held_out, record.train_digest) == ((), (), "")
    assert record.restore(source).notes == ()
    fewer = replace(source, val=Subset(source.val, range(300)))
    assert record.restore(fewer).notes == ("the run had 360 images held out, digits now has 300",)


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
