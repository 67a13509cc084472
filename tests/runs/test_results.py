from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from convattn.data import BrokenFile
from convattn.runs.folder import RunFolder
from convattn.runs.results import read_run
from tests.explain.runs import write_run

FILES = ["metrics.csv", "evaluation.json", "environment.json"]


def test_a_whole_run_has_no_notes(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.notes == []
    assert len(run.epochs) == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", [b"", b"\0" * 99, b"[1]", b"\xff\xfe: \x80", b"a,b\r\n1\r\n"])
def test_a_damaged_file_is_noted(tmp_path: Path, name: str, text: bytes) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(text)
    (note,) = read_run(folder).notes
    assert f"{name} is damaged: " in note


def test_a_damaged_configuration_has_no_settings(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_bytes(b"a: [\0\xff")
    assert read_run(folder).settings == {}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("evaluation.json", "images", "many"),
        ("evaluation.json", "class_names", 3),
        ("evaluation.json", "per_class", {"name": "ant"}),
        ("environment.json", "starts", 3),
        ("environment.json", "starts", [{"time": 3, "command": ""}]),
    ],
)
def test_a_value_of_another_type_is_noted(
    tmp_path: Path, name: str, key: str, value: object
) -> None:
    folder = write_run(tmp_path / "run")
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, key: value}))
    (note,) = read_run(folder).notes
    assert f"{name} is damaged" in note


def test_names_that_are_not_utf8_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "broken_images.txt").write_bytes(b"caf\xe9.png\n")
    run = read_run(folder)
    assert run.notes == []
    assert run.broken_images == [os.fsdecode(b"caf\xe9.png")]


def test_class_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    names = (os.fsdecode(b"ros\xe9"), "a\nb", "Größe")
    folder = write_run(tmp_path / "run", class_names=names)
    assert read_run(folder).class_names == ["ros\\udce9", "a\\nb", "Größe"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run folder at .*gone"):
        read_run(tmp_path / "gone")


def test_names_of_broken_images_with_line_separators_are_one_line_each(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\rd.png", "e\x0bf.png", "g\x85h.png"]
    RunFolder(tmp_path).write_broken([BrokenFile(name, "cut off") for name in names])
    assert sorted(read_run(tmp_path).broken_images) == sorted(names)


def test_an_evaluation_with_nan_is_read_again(tmp_path: Path) -> None:
    values = {"loss": float("nan"), "top1": 0.5}
    RunFolder(tmp_path).write_evaluation(values, ["index"], [])
    run = read_run(tmp_path)
    assert run.notes == []
    assert math.isnan(run.evaluation["loss"])
