from __future__ import annotations

from pathlib import Path

import pytest

from convattn.runs.files import replacing


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("before")
    with replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("before")
    with pytest.raises(OSError, match="full"):
        write_half(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
