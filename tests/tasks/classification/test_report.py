from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from convattn.explain.report import write_report
from convattn.explain.sections import read_confusion
from convattn.runs.confusion import Confusion
from convattn.runs.files import DamagedFileError
from convattn.runs.results import read_run
from convattn.tasks.classification.report import PARTS, read_rows
from convattn.tasks.classification.task import Classification
from tests.explain.runs import write_run

FILES = ["metrics.csv", "evaluation.json", "predictions.csv", "environment.json"]


def page(folder: Path) -> str:
    path = write_report(folder, parts=PARTS, metrics=Classification.columns(""))
    return path.read_text(encoding="utf-8")


def test_confusions_and_predictions_of_a_run_are_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert read_confusion(run)[1] == [1, 3, 0]
    rows = read_rows(run)
    assert rows is not None
    assert [row.index for row in rows if row.is_wrong] == [1, 5]


def test_a_run_without_predictions_has_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "predictions.csv").unlink()
    assert read_rows(read_run(folder)) is None


def test_the_counts_of_many_classes_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = json.loads((folder / "evaluation.json").read_text())
    found["confusion"] = {"classes": 3000, "counts": [[0, 2999, 4], [1, 1, 2]]}
    (folder / "evaluation.json").write_text(json.dumps(found))
    assert read_confusion(read_run(folder)) == Confusion(3000, [(0, 2999, 4), (1, 1, 2)])
    assert "ant" in page(folder)


@pytest.mark.parametrize("text", [b"", b"\0" * 99, b"[1]", b"\xff\xfe: \x80", b"a,b\r\n1\r\n"])
def test_damaged_predictions_are_an_error_with_a_reason(tmp_path: Path, text: bytes) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "predictions.csv").write_bytes(text)
    with pytest.raises(DamagedFileError, match=r"predictions\.csv is damaged: "):
        read_rows(read_run(folder))


def test_a_report_of_damaged_files_is_written_and_names_them_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in (*FILES, "config.yaml"):
        (folder / name).write_bytes(b"\xff\xfe: \x80")
    assert [page(folder).count(f"{name} is damaged: ") for name in FILES] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top1", "high"),
        ("per_class", [{"name": "ant"}]),
        ("per_class", [3]),
        ("per_class", [{"name": "ant", "images": 3, "accuracy": None}]),
        ("confusion", [[1, 2]]),
        ("confusion", {"classes": 2}),
    ],
)
def test_a_value_of_another_type_is_noted(tmp_path: Path, key: str, value: object) -> None:
    folder = write_run(tmp_path / "run")
    values = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({**values, key: value}))
    assert "evaluation.json is damaged: " in page(folder)


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    names = (os.fsdecode(b"ros\xe9"), "a\nb", "Größe")
    folder = write_run(tmp_path / "run", class_names=names)
    table = (folder / "predictions.csv").read_bytes()
    (folder / "predictions.csv").write_bytes(table.replace(b"val/5", b"caf\xe9/5"))
    found = page(folder)
    assert found.count("ros\\udce9") > 2
    assert "caf\\udce9/5.png" in found
