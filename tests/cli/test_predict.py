from __future__ import annotations

import json
from pathlib import Path

import pytest

from convattn.cli import main
from tests.data.folders import write_broken


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


def test_a_broken_image_is_told_beside_the_table(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(work / "colors" / "red" / "0.png")
    bad = str(write_broken(tmp_path / "bad.png"))
    assert main(["predict", str(work / "runs" / "run"), good, bad]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err == f"skipped {bad}: not an image but a text file\n"
