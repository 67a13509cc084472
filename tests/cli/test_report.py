from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from convattn.cli import main


@pytest.fixture
def run_dir(work: Path, tmp_path: Path) -> Path:
    """A copy of the finished run without its report."""
    copy = Path(shutil.copytree(work / "runs" / "run", tmp_path / "run"))
    (copy / "report.html").unlink()
    (copy / "curves.png").unlink()
    return copy


def test_the_report_is_written_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr() == (f"{run_dir}/report.html\n", "")
    page = (run_dir / "report.html").read_text()
    assert "Best epoch" in page
    assert "top-1 accuracy" in page
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_wrong_examples(run_dir: Path) -> None:
    lines = (run_dir / "predictions.csv").read_text().splitlines()
    index, path, label, _, *probabilities = lines[1].split(",")
    wrong = ",".join([index, path, label, "1" if label == "0" else "0", *probabilities])
    (run_dir / "predictions.csv").write_text("\n".join([lines[0], wrong, *lines[2:], ""]))
    assert main(["report", str(run_dir)]) == 0
    assert f'title="{path}"' in (run_dir / "report.html").read_text()


def test_without_the_images_the_report_has_the_numbers(run_dir: Path, work: Path) -> None:
    (work / "colors").rename(work / "moved")
    try:
        assert main(["report", str(run_dir)]) == 0
    finally:
        (work / "moved").rename(work / "colors")
    page = (run_dir / "report.html").read_text()
    assert "the page has no pictures of images: there is no folder" in page
    assert "top-1 accuracy" in page


def test_without_a_checkpoint_the_report_has_the_numbers(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    assert main(["report", str(run_dir)]) == 0
    assert "top-1 accuracy" in (run_dir / "report.html").read_text()


def test_a_folder_without_space_is_one_message(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["report", str(run_dir)]) == 2
    message = f"convattn: cannot write into {run_dir}: No space left on device\n"
    assert capsys.readouterr().err == message
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["gone"], "there is no run folder gone"), (["."], "is not a run folder")],
)
def test_a_mistake_is_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
