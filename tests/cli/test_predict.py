from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from convattn.cli import main
from convattn.cli.predict import OPTIONS
from convattn.cli.trained import EVALUATE_OPTIONS
from convattn.tasks.table import find_task, list_tasks
from convattn.training.options import evaluate_options, predict_options
from tests.data.class_folders import write_broken, write_image


def test_the_table_has_a_line_per_image(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(work / "colors" / name / "0.png") for name in ("red", "blue")]
    assert main(["predict", str(work / "runs" / "run"), *images, "--top-k", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "best"]
    assert [row.split()[0] for row in rows] == images
    assert all(row.split()[1] in ("red", "blue") and row.endswith("%") for row in rows)


def test_json_has_every_guess(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(work / "colors" / "red")
    assert main(["predict", str(work / "runs" / "run"), folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["images"]) == 16
    assert {guess["name"] for guess in found["images"][0]["guesses"]} == {"red", "blue"}


def test_the_output_folder_gets_drawings_and_json(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(work / "colors" / name / "0.png") for name in ("red", "blue")]
    output = tmp_path / "new" / "folder"
    words = ["predict", str(work / "runs" / "run"), *images, "--json", "--output", str(output)]
    for _ in range(2):  # an earlier result is replaced
        assert main(words) == 0
        assert json.loads((output / "predictions.json").read_text()) == json.loads(
            capsys.readouterr().out
        )
        assert sorted(path.name for path in output.glob("*.png")) == ["0-2.png", "0.png"]
    for path, name in zip(images, ("0.png", "0-2.png"), strict=True):
        drawn, image = Image.open(output / name), Image.open(path)
        assert drawn.size == image.size
        lower = (0, image.height // 2, *image.size)
        assert drawn.tobytes() != image.tobytes()
        assert drawn.crop(lower).tobytes() == image.crop(lower).tobytes()


def test_an_output_folder_with_other_files_is_refused(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_image(tmp_path / "a.png")
    before = path.read_bytes()
    words = ["predict", str(work / "runs" / "run"), str(path), "--output", str(tmp_path)]
    assert main(words) == 2
    assert f"--output {tmp_path} holds other files" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_drawings_that_cannot_be_written_do_not_cost_the_table(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions.json").touch()
    (tmp_path / "a.png").mkdir()
    path = write_image(tmp_path / "images" / "a.png")
    words = ["predict", str(work / "runs" / "run"), str(path), "--output", str(tmp_path)]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert str(path) in out
    assert "a.png" in err


def test_a_broken_image_is_reported_on_stderr(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(work / "colors" / "red" / "0.png")
    bad = str(write_broken(tmp_path / "bad.png"))
    assert main(["predict", str(work / "runs" / "run"), good, bad]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err == f"skipped {bad}: not an image but a text file\n"


def test_control_characters_in_file_names_are_escaped_and_skipped_files_are_counted(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("\x1b[2J.png", "a\nb.png", os.fsdecode(b"caf\xe9.png")):
        write_image(tmp_path / "good.png").rename(tmp_path / name)
    write_broken(tmp_path / "bad\n.png")
    (tmp_path / "scan.DCM").touch()
    assert main(["predict", str(work / "runs" / "run"), str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).splitlines())
    names = [line.split()[0].removeprefix(f"{tmp_path}/") for line in out.splitlines()[1:]]
    assert sorted(names) == [r"\x1b[2J.png", r"a\nb.png", r"caf\udce9.png"]
    assert err.splitlines() == [
        rf"skipped {tmp_path}/bad\n.png: not an image but a text file",
        "note: 1 file of other kinds passed over: 1 .dcm",
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_names_that_the_output_cannot_encode_are_escaped(
    work: Path,
    tmp_path: Path,
    encoding: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["é.png", "猫.png", "😀.png", os.fsdecode(b"\xe9.png")]
    for name in names:
        write_image(tmp_path / "good.png").rename(tmp_path / name)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["predict", str(work / "runs" / "run"), str(tmp_path), *words]) == 0
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    if words:
        found = {Path(image["path"]).name for image in json.loads(text)["images"]}
        assert found == set(names)
    else:
        assert len(text.splitlines()) == 1 + len(names)
        assert ("猫.png" if encoding == "utf-8" else r"\u732b.png") in text


def test_a_folder_of_other_files_is_an_error_that_counts_them(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.heic").touch()
    assert main(["predict", str(work / "runs" / "run"), str(tmp_path)]) == 2
    message = f"no images in the folder {tmp_path}; 3 files of other kinds passed over: 3 .heic"
    assert message in capsys.readouterr().err


def test_every_option_of_every_task_is_an_option_of_the_command() -> None:
    tasks = [find_task(task) for task in list_tasks()]
    assert {*OPTIONS} == {name for task in tasks for name in predict_options(task)}
    assert {*EVALUATE_OPTIONS} == {name for task in tasks for name in evaluate_options(task)}


def test_an_option_of_another_task_is_an_error_that_lists_the_options_of_this_task(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(work / "colors" / "red" / "0.png")
    assert main(["predict", str(work / "runs" / "run"), image, "--score", "0.5"]) == 2
    message = "--score is no option of classification, the task of this model; its options are: "
    assert f"{message}--top-k" in capsys.readouterr().err


def test_masks_of_a_classification_are_an_error(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(work / "colors" / "red" / "0.png")
    words = ["predict", str(work / "runs" / "run"), image, "--masks", str(tmp_path / "masks")]
    assert main(words) == 2
    assert "a prediction of classification has no masks" in capsys.readouterr().err
