from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from convattn.runs.files import (
    DamagedFileError,
    append_csv_row,
    read_csv,
    read_json,
    read_text,
    remove_temporary,
    replacing,
    write_csv,
    write_json,
    write_text,
)
from tests.runs.disk import largest_file, umask

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "x" * 5000),
    "json": lambda path: write_json(path, {"a": "x" * 5000}),
    "csv": lambda path: write_csv(path, ["a"], [{"a": "x" * 5000}]),
    "row": lambda path: append_csv_row(path, ["a"], {"a": "x" * 5000}),
}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("before")
    with replacing(path) as temporary:
        temporary.write_text("after")
        assert temporary.parent == tmp_path
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("a\r\nbefore\r\n")
    with largest_file(1000), pytest.raises(OSError, match=r"too large: .*/file'$"):
        WRITERS[kind](path)
    assert path.read_bytes() == b"a\r\nbefore\r\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_the_mode_follows_the_umask(tmp_path: Path, kind: str, mask: int) -> None:
    with umask(mask):
        WRITERS[kind](tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def replace_privately(path: Path) -> None:
    """Write as safetensors does, which puts a private file in the place of the temporary one."""
    with replacing(path) as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT, 0o600))


def test_a_writer_that_makes_the_file_private_does_not_keep_it_private(tmp_path: Path) -> None:
    with umask(0o022):
        replace_privately(tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_chmod_that_is_not_permitted_is_no_error(tmp_path: Path) -> None:
    with mock.patch("pathlib.Path.chmod", side_effect=PermissionError(1, "not permitted")):
        replace_privately(tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:
        with replacing(tmp_path / "file"):
            os._exit(0)  # as if it were killed
    os.waitpid(process, 0)
    (tmp_path / "notes.tmp").write_text("of the user")
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.tmp"]


def test_a_text_keeps_the_bytes_of_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", NOT_UTF8)
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9.png"
    assert read_text(tmp_path / "a.txt") == NOT_UTF8


def test_a_table_keeps_the_bytes_of_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["path"], [{"path": NOT_UTF8}])
    append_csv_row(tmp_path / "a.csv", ["path"], {"path": "猫,\nb"})
    assert b"caf\xe9.png" in (tmp_path / "a.csv").read_bytes()
    assert read_csv(tmp_path / "a.csv", ["path"]) == [{"path": NOT_UTF8}, {"path": "猫,\nb"}]


def test_json_is_utf8_and_gives_such_names_back(tmp_path: Path) -> None:
    for indent in (2, None):
        write_json(tmp_path / "a.json", {NOT_UTF8: [NOT_UTF8, "猫"]}, indent)
        assert "猫" in (tmp_path / "a.json").read_text(encoding="utf-8")
        assert read_json(tmp_path / "a.json") == {NOT_UTF8: [NOT_UTF8, "猫"]}


def test_json_without_an_indent_has_a_line_per_key(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, [2, 3]], "b": {}}, None)
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [1, [2, 3]],\n  "b": {}\n}\n'
    write_json(tmp_path / "a.json", {}, None)
    assert json.loads((tmp_path / "a.json").read_text()) == {}


def test_a_row_is_added_to_the_columns_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    append_csv_row(path, ["epoch", "loss"], {"epoch": 1, "loss": 0.5})
    append_csv_row(path, ["epoch", "acc"], {"epoch": 2, "acc": 1})
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"epoch": "1", "loss": "0.5", "acc": ""},
            {"epoch": "2", "loss": "", "acc": "1"},
        ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "its heading has no 'epoch'"),
        (b"epoxh,loss\r\n1,2\r\n", "its heading has no 'epoch'"),
        (b"epoch,loss\r\n1,2\r\n3\r\n", "row 3 has 1 cells, its heading has 2"),
        (b"epoch,loss\r\n1,2,3\r\n", "row 2 has 3 cells, its heading has 2"),
        (b"\x00" * 100, "its heading has no 'epoch'"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "metrics.csv").write_bytes(text)
    with pytest.raises(DamagedFileError, match=rf"metrics\.csv is damaged: .*{reason}.*; restore"):
        read_csv(tmp_path / "metrics.csv", ["epoch"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is not JSON"),
        (b'{"a": 1', "it is not JSON"),
        (b"[1]", "it holds a list instead of keys and values"),
        (b"\xff\xfe{}", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it is not JSON"),
    ],
)
def test_damaged_json_is_named(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "data.json").write_bytes(text)
    with pytest.raises(DamagedFileError, match=rf"data\.json is damaged: {reason}"):
        read_json(tmp_path / "data.json")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.json").mkdir()
    with pytest.raises(DamagedFileError, match=r"data\.json is damaged: it cannot be read"):
        read_json(tmp_path / "data.json")


def test_a_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "metrics.csv", [])


@pytest.mark.parametrize("kind", WRITERS)
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        WRITERS[kind](tmp_path / "missing" / "file")
    assert str(caught.value).endswith("/missing/file'")


def test_a_folder_in_the_place_of_a_file_that_is_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.json").mkdir()
    with pytest.raises(OSError, match=r"/data\.json'$") as caught:
        write_json(tmp_path / "data.json", {})
    assert ".tmp" not in str(caught.value)


def test_a_file_and_its_name_reach_the_disk(tmp_path: Path) -> None:
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append("name")
        real_replace(source, target)

    with mock.patch("os.fsync", fsync), mock.patch("os.replace", replace):
        write_text(tmp_path / "a.txt", "text")
    assert events == ["file", "name", "folder"]


def test_blank_lines_of_a_table_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\r\n1,2\r\n\r\n3,4\r\n\r\n")
    rows = [{"epoch": "1", "loss": "2"}, {"epoch": "3", "loss": "4"}]
    assert read_csv(tmp_path / "metrics.csv", ["epoch"]) == rows


@pytest.mark.parametrize("indent", [2, None])
def test_json_has_no_number_that_other_programs_cannot_read(
    tmp_path: Path, indent: int | None
) -> None:
    values = {"loss": float("nan"), "list": [1.5, float("inf"), (float("-inf"),)], "n": 2}
    write_json(tmp_path / "a.json", values, indent)
    assert read_json(tmp_path / "a.json") == {"loss": None, "list": [1.5, None, [None]], "n": 2}
