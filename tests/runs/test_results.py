from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from convattn.data import BrokenFile
from convattn.explain.report import write_report
from convattn.runs.confusion import Confusion
from convattn.runs.folder import RunFolder
from convattn.runs.results import PREDICTION_COLUMNS, read_run
from tests.explain.runs import write_run

FILES = ["metrics.csv", "evaluation.json", "predictions.csv", "environment.json"]


def test_a_whole_run_has_no_notes(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.notes == []
    assert run.confusion[1] == [1, 3, 0]
    assert len(run.epochs) == 3


def test_the_counts_of_many_classes_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = json.loads((folder / "evaluation.json").read_text())
    found["confusion"] = {"classes": 3000, "counts": [[0, 2999, 4], [1, 1, 2]]}
    (folder / "evaluation.json").write_text(json.dumps(found))
    run = read_run(folder)
    assert run.notes == []
    assert run.confusion == Confusion(3000, [(0, 2999, 4), (1, 1, 2)])
    assert "ant" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", [b"", b"\0" * 99, b"[1]", b"\xff\xfe: \x80", b"a,b\r\n1\r\n"])
def test_a_damaged_file_is_noted(tmp_path: Path, name: str, text: bytes) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(text)
    (note,) = read_run(folder).notes
    assert f"{name} is damaged: " in note


def test_a_report_of_damaged_files_is_written_and_names_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in (*FILES, "config.yaml"):
        (folder / name).write_bytes(b"\xff\xfe: \x80")
    page = write_report(folder).read_text(encoding="utf-8")
    assert all(f"{name} is damaged: " in page for name in FILES)


def test_a_damaged_configuration_has_no_settings(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_bytes(b"a: [\0\xff")
    assert read_run(folder).settings == {}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("evaluation.json", "top1", "high"),
        ("evaluation.json", "class_names", 3),
        ("evaluation.json", "per_class", [{"name": "ant"}]),
        ("evaluation.json", "per_class", [{"name": "ant", "images": 3, "accuracy": None}]),
        ("evaluation.json", "confusion", [[1, 2]]),
        ("evaluation.json", "confusion", {"classes": 2}),
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
    table = (folder / "predictions.csv").read_bytes()
    (folder / "predictions.csv").write_bytes(table.replace(b"val/5", b"caf\xe9/5"))
    (folder / "broken_images.txt").write_bytes(b"caf\xe9.png\n")
    run = read_run(folder)
    assert run.notes == []
    assert run.broken_images == [os.fsdecode(b"caf\xe9.png")]
    assert run.mistakes[0].path == os.fsdecode(b"caf\xe9/5.png")


def test_class_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    names = (os.fsdecode(b"ros\xe9"), "a\nb", "Größe")
    folder = write_run(tmp_path / "run", class_names=names)
    assert read_run(folder).class_names == ["ros\\udce9", "a\\nb", "Größe"]
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count("ros\\udce9") > 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run folder at .*gone"):
        read_run(tmp_path / "gone")


def test_names_of_broken_images_with_line_separators_are_one_line_each(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\rd.png", "e\x0bf.png", "g\x85h.png"]
    RunFolder(tmp_path).write_broken([BrokenFile(name, "cut off") for name in names])
    assert sorted(read_run(tmp_path).broken_images) == sorted(names)


def test_an_evaluation_with_nan_is_read_again(tmp_path: Path) -> None:
    values = {"loss": float("nan"), "top1": 0.5}
    RunFolder(tmp_path).write_evaluation(values, PREDICTION_COLUMNS, [])
    run = read_run(tmp_path)
    assert run.notes == []
    assert math.isnan(run.evaluation["loss"])
