from __future__ import annotations

import json
from pathlib import Path

import pytest

from convattn.cli import main


def test_the_table_names_data_accuracy_and_classes(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(work / "runs" / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model     test_vit, ")
    assert lines[1] == f"data      folder:{work}/colors (val), 8 images"
    assert [line.split()[0] for line in lines[2:6]] == ["top-1", "top-2", "loss", "speed"]
    assert [line.split()[:2] for line in lines[-2:]] == [["blue", "4"], ["red", "4"]]


def test_json_and_files(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", f"folder:{work}/colors", "--split", "all", "--output", str(tmp_path / "o")]
    assert main(["eval", str(work / "runs" / "run"), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 32
    assert json.loads((tmp_path / "o" / "evaluation.json").read_text())["top1"] == found["top1"]
    assert len((tmp_path / "o" / "predictions.csv").read_text().splitlines()) == 33


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "there is no checkpoint or run folder gone"),
        (["RUN", "--data", "digits"], "knows 2 classes (blue, red), but digits has 10"),
        (["RUN", "--split", "alll"], "unknown split 'alll'; did you mean 'all'"),
        (["RUN", "extra"], "does not know what to do with 'extra'"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = str(work / "runs" / "run")
    assert main(["eval", *(run_dir if word == "RUN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err
