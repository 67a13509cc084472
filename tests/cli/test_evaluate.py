from __future__ import annotations

import json
from pathlib import Path

import pytest

from convattn.cli import main
from convattn.data import open_dataset
from convattn.runs.weights import save_weights
from convattn.tasks.classification.build import build_model
from tests.data.class_folders import write_classes, write_image
from tests.tasks.classification.runs import tiny


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
        (["RUN", "--data", "digits"], "has 2 classes ('blue', 'red'), but digits has 10"),
        (["RUN", "--split", "alll"], "unknown split 'alll'; did you mean 'all'"),
        (["RUN", "extra"], "'extra' is no setting: write NAME=VALUE, such as val_split=test"),
        (["RUN", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["RUN", "--output", "/dev/null/new"], "--output /dev/null/new: cannot write there"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = str(work / "runs" / "run")
    assert main(["eval", *(run_dir if word == "RUN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_printed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").mkdir()
    assert main(["eval", str(work / "runs" / "run"), "--output", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "top-1" in out
    assert "evaluation.json" in err


def test_control_characters_in_names_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "colors\n", {"a\nb": 4, "\x1b[2Jc": 4})
    data = f"folder:{tmp_path}/colors\n"
    model, card, _ = build_model(tiny(tmp_path, data=data), open_dataset(data))
    save_weights(model.state_dict(), card, tmp_path / "a.safetensors")
    assert main(["eval", str(tmp_path / "a.safetensors"), "--data", data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[1] == rf"data      folder:{tmp_path}/colors\n (val), 2 images"
    assert [line.split()[:2] for line in lines[-2:]] == [[r"\x1b[2Jc", "1"], [r"a\nb", "1"]]


def test_files_that_were_skipped_are_listed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "Training", {"red": 2, "blue": 2})
    write_image(tmp_path / "Testing" / "1.png")
    (tmp_path / "Training" / "red" / "1.heic").touch()
    words = ["eval", str(work / "runs" / "run"), "--data", f"folder:{tmp_path}"]
    assert main(words) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note  ")]
    assert told == [
        "note      Testing is passed over: it holds 1 image but no class folders",
        "note      1 file of other kinds passed over: 1 .heic",
    ]
    assert main([*words, "--json"]) == 0
    assert [f"note      {note}" for note in json.loads(capsys.readouterr().out)["notes"]] == told
