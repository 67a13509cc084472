"""The cache of indexes: whole or not at all, read with suspicion, never an error."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convattn.data import open_dataset
from convattn.data.objects.cache import cache_folder, index_path, read_index, write_index
from tests.data.objects.object_files import annotation, write_coco

COLUMNS: dict[str, np.ndarray] = {
    "numbers": np.arange(5, dtype=np.int64),
    "empty": np.zeros(0, np.float32),
    "bytes": np.frombuffer(b"abc", np.uint8),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_is_chosen_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("CONVATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "convattn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("~/.cache/convattn").expanduser()


def test_an_index_comes_back_with_header_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "a-b.index"
    assert write_index(path, {"name": "caf\udce9", "list": [1, 2]}, COLUMNS)
    found = read_index(path)
    assert found is not None
    assert found[0] == {"name": "caf\udce9", "list": [1, 2]}
    for name, column in COLUMNS.items():
        assert found[1][name].dtype == column.dtype
        assert np.array_equal(found[1][name], column)
    assert os.listdir(path.parent) == ["a-b.index"]


def test_a_column_of_more_than_64_megabytes_is_read_piece_by_piece(tmp_path: Path) -> None:
    large = np.arange(2**23 + 5, dtype=np.float64)
    write_index(tmp_path / "a-b.index", {}, {"large": large, **COLUMNS})
    found = read_index(tmp_path / "a-b.index")
    assert found is not None
    column = found[1]["large"]
    assert len(column) == len(large)
    assert not isinstance(column, np.ndarray)
    assert column[2**23 : 2**23 + 5].tolist() == large[-5:].tolist()
    assert column[7:7].tolist() == []
    assert found[1]["numbers"].tolist() == [0, 1, 2, 3, 4]


def test_a_new_index_of_the_same_files_replaces_the_earlier_one(tmp_path: Path) -> None:
    for name in ("a-1", "b-1", "a-2"):
        write_index(tmp_path / f"{name}.index", {}, COLUMNS)
    assert sorted(os.listdir(tmp_path)) == ["a-2.index", "b-1.index"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:30],
        lambda content: b"",
        lambda content: b"x" + content[1:],
        lambda content: content.replace(b'"header"', b'"haeder"'),
        lambda content: content + b"\0",
        lambda content: content.replace(b"abc", b"abd"),
    ],
)
def test_a_damaged_index_is_as_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a-b.index"
    write_index(path, {"a": 1}, COLUMNS)
    path.write_bytes(damage(path.read_bytes()))
    assert read_index(path) is None


def test_the_path_changes_with_the_files(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("1")
    first = index_path("coco", [file])
    assert first.parent == cache
    assert index_path("coco", [file]) == first != index_path("yolo", [file])
    os.utime(file, ns=(1, 1))
    assert index_path("coco", [file]) != first
    file.unlink()
    assert index_path("coco", [file]).name[:16] == first.name[:16]


def boxes(root: Path) -> list[list[float]]:
    source = open_dataset(f"coco:{root}", targets="boxes", held_out=["train2017/0004.jpg"])
    found: list[list[float]] = source.train.target(0)["boxes"].tolist()
    return found


@pytest.mark.parametrize("damage", [b"", b"convattn-index\n", b"\0" * 5000])
def test_a_data_set_is_read_again_where_its_index_is_damaged(
    tmp_path: Path, cache: Path, damage: bytes
) -> None:
    write_coco(tmp_path, [annotation(1, 1)])
    expected = boxes(tmp_path)
    (index,) = cache.glob("*.index")
    index.write_bytes(damage)
    assert boxes(tmp_path) == expected
    assert read_index(index) is not None


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVATTN_CACHE", str(tmp_path / "file"))
    write_coco(tmp_path, [annotation(1, 1)])
    assert boxes(tmp_path) == [[2, 3, 12, 11]]


@pytest.mark.parametrize("writable", [True, False])
def test_a_started_process_gets_the_same_images_and_maps_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    folder = tmp_path / "cache"
    if not writable:
        folder.touch()
    monkeypatch.setenv("CONVATTN_CACHE", str(folder))
    polygon = [[float(n % 30) for n in range(4000)]]
    write_coco(tmp_path, [annotation(1, 1, segmentation=polygon)])
    source = open_dataset(f"coco:{tmp_path}", targets="instances", held_out=["train2017/0004.jpg"])
    data = pickle.dumps(source.train)
    assert (len(data) < 4000) == writable
    again = pickle.loads(data)
    assert again.target(0)["boxes"].tolist() == [[2, 3, 12, 11]]
    assert (again.target(0)["masks"] == source.train.target(0)["masks"]).all()
    assert again.path(2) == source.train.path(2)
