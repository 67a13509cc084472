from __future__ import annotations

import json
from pathlib import Path

import pytest

from convattn.cli import main
from convattn.cli.data_scenes import FORMATS, MAX_SIZE, MIN_SIZE
from convattn.data.scenes.make import MAX_SIZE as MOST_PIXELS
from convattn.data.scenes.make import MIN_SIZE as FEWEST_PIXELS
from convattn.data.scenes.write import WRITERS

SMALL = ["--count", "3", "--val", "2", "--size", "64"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_output_names_the_next_command(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my scenes"
    assert main(["data", "scenes", "--out", str(out), "--format", format, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 3 training pictures and 2 held out\n" in printed
    command = printed.partition("\nNext:\n  convattn train ")[2]
    assert f":'{out}" in command
    assert command.endswith(" img_size=64\n")
    assert sum(path.suffix == ".jpg" for path in out.rglob("*")) == 5


@pytest.mark.parametrize(("words", "recipe"), [([], "small"), (["--easy"], "scenes")])
def test_the_next_command_has_the_recipe_for_the_pictures(
    words: list[str], recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "scenes", "--out", str(tmp_path / "out"), *SMALL, *words]) == 0
    assert f" --recipe {recipe} --data coco:" in capsys.readouterr().out


def test_the_command_knows_the_formats_and_sizes_of_the_data() -> None:
    """They stand there again, since the help imports no torch."""
    assert set(FORMATS) == set(WRITERS)
    assert (MIN_SIZE, MAX_SIZE) == (FEWEST_PIXELS, MOST_PIXELS)


def test_a_quarter_is_held_out_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scenes"
    assert main(["data", "scenes", "--out", str(out), "--count", "8", "--size", "64"]) == 0
    assert "8 training pictures and 2 held out" in capsys.readouterr().out
    content = json.loads((out / "annotations" / "instances_train2017.json").read_text())
    assert [image["width"] for image in content["images"]] == [64] * 8


def test_the_seed_changes_the_scenes(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        out = str(tmp_path / seed)
        assert main(["data", "scenes", "--out", out, "--seed", seed, *SMALL]) == 0
    file = Path("annotations", "instances_train2017.json")
    assert (tmp_path / "0" / file).read_text() != (tmp_path / "1" / file).read_text()


def test_easy_pictures_have_few_and_large_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path), "--easy", "--count", "24", "--val", "1", "--size", "64"]
    assert main(["data", "scenes", *words]) == 0
    assert "1 held out, with few and large objects (--easy)\n" in capsys.readouterr().out
    content = json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text())
    counts = [0] * 24
    places = {image["id"]: place for place, image in enumerate(content["images"])}
    for entry in content["annotations"]:
        counts[places[entry["image_id"]]] += 1
    assert set(counts) == {1, 2, 3}
    assert all(max(entry["bbox"][2:]) > 10 for entry in content["annotations"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say where to write: --out DIR"),
        (["--out", "."], "cannot write into .: the folder is not empty: it holds mine.txt"),
        (["--out", "mine.txt"], "cannot write into mine.txt: this is a file"),
        (["--out", "x", "--format", "coca"], "unknown --format 'coca'; did you mean 'coco'?"),
        (["--out", "x", "--count", "many"], "--count many: give a whole number from 1 to"),
        (["--out", "x", "--count", "0"], "--count 0: give a whole number from 1 to"),
        (["--out", "x", "--val=-1"], "--val -1: give a whole number from 1 to"),
        (["--out", "x", "--size", "32"], "--size 32: give a whole number from 64 to 4,096"),
        (["--out", "x", "--format", "classes", "--easy"], "--easy is not for --format classes"),
        (["--out", "x", "--seed", "1.5"], "--seed 1.5: give a whole number from 0 to"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "scenes", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "scenes")
    assert main(["data", "scenes", "--out", out, *SMALL]) == 2
    assert f"--out {out}: cannot write there" in capsys.readouterr().err
