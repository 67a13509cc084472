"""Indexes of data sets on the disk: columns of numbers that processes map into their memory.

An index is one file: `_MAGIC`, the length of the header, the header in JSON, and the columns. It
lies in the folder CONVATTN_CACHE, by default ``$XDG_CACHE_HOME/convattn`` or ``~/.cache/convattn``.
A cache that cannot be written or read is no error: the index is then built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 3
_MAGIC = b"convattn-index\n"
_ALIGNMENT = 64
_LENGTH = 16  # hexadecimal digits of the header's length
_SUFFIX = ".index"
_CHECKED = 2**26  # bytes; larger columns are read piece by piece, without a checksum

Columns = Mapping[str, np.ndarray]


class FileColumn:
    """A large column that is read from the file piece by piece.

    A memory map of the file would count as memory of every process that reads scattered pieces,
    since the system maps megabytes around each piece.

    Args:
        path: the file.
        dtype: type of the values.
        first: offset of the column in the file, in bytes.
        size: size of the column in bytes.
    """

    def __init__(self, path: Path, dtype: str, first: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._dtype, self._first, self._size = np.dtype(dtype), first, size

    def __len__(self) -> int:
        return self._size // self._dtype.itemsize

    def __getitem__(self, place: slice) -> np.ndarray:
        item = self._dtype.itemsize
        length = (place.stop - place.start) * item
        # Processes share the file's position, which pread does not use.
        data = os.pread(self._file.fileno(), length, self._first + place.start * item)
        return np.frombuffer(data, self._dtype)


def cache_folder() -> Path:
    """Return the folder of the indexes."""
    if chosen := os.environ.get("CONVATTN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification says that relative paths are ignored
        base = os.path.expanduser("~/.cache")
    return Path(base) / "convattn"


def index_path(kind: str, files: Iterable[str | Path]) -> Path:
    """Return the path of the index of files; it depends on their sizes and modification times.

    Args:
        kind: the format of the data set.
        files: the files that the index is read from; the index has the name of the first one.
    """
    paths = [os.path.abspath(file) for file in files]
    state = hashlib.sha256(f"{FORMAT_VERSION} {kind}\n".encode())
    for path in paths:
        try:
            found = os.stat(path)
            line = f"{path}\t{found.st_size}\t{found.st_mtime_ns}\n"
        except OSError:
            line = f"{path}\tmissing\n"
        state.update(os.fsencode(line))
    place = hashlib.sha256(os.fsencode(f"{kind} {paths[0] if paths else ''}"))
    return cache_folder() / f"{place.hexdigest()[:16]}-{state.hexdigest()[:16]}{_SUFFIX}"


def write_index(path: Path, header: Mapping[str, Any], columns: Columns) -> bool:
    """Write an index whole or not at all, and remove earlier ones of the same files.

    Returns:
        Whether it was written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for block in _blocks(header, columns):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    place = path.name.partition("-")[0]
    with contextlib.suppress(OSError):
        for other in path.parent.glob(f"{place}-*{_SUFFIX}"):
            if other != path:
                other.unlink()
    return True


def read_index(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the header and the columns of an index; None if there is none, or it is damaged.

    The columns are read-only maps of the file, whose memory processes share; large ones are each a
    `FileColumn`.
    """
    try:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        start = len(_MAGIC) + _LENGTH + 8
        if bytes(content[: len(_MAGIC)]) != _MAGIC:
            return None
        length, checksum = (int(bytes(part), 16) for part in _numbers(content))
        text = bytes(content[start : start + length])
        if len(text) != length or zlib.crc32(text) != checksum:
            return None
        found = json.loads(text)
        if len(content) != found["bytes"]:
            return None
        columns: dict[str, Any] = {}
        for name, dtype, first, size, checksum in found["columns"]:
            if size > _CHECKED and hasattr(os, "pread"):  # not on Windows
                columns[name] = FileColumn(path, dtype, first, size)
                continue
            column = content[first : first + size]
            if size <= _CHECKED and zlib.crc32(column.data) != checksum:
                return None
            columns[name] = column.view(dtype)
        return found["header"], columns
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _numbers(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    begin = len(_MAGIC)
    return content[begin : begin + _LENGTH], content[begin + _LENGTH : begin + _LENGTH + 8]


def _blocks(header: Mapping[str, Any], columns: Columns) -> Iterable[bytes | memoryview]:
    """Yield the parts of the file; the header has the offsets of the columns."""
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    sizes = {name: array.nbytes for name, array in arrays.items()}
    reserved = len(json.dumps(header)) + 128 * (len(arrays) + 1)
    first = _aligned(len(_MAGIC) + _LENGTH + 8 + reserved)
    places: list[tuple[str, str, int, int, int]] = []
    for name, array in arrays.items():
        checksum = zlib.crc32(array.data.cast("B")) if 0 < sizes[name] <= _CHECKED else 0
        places.append((name, array.dtype.str, first, sizes[name], checksum))
        first = _aligned(first + sizes[name])
    text = json.dumps({"header": header, "columns": places, "bytes": first}).encode()
    yield _MAGIC + f"{len(text):0{_LENGTH}x}{zlib.crc32(text):08x}".encode() + text
    written = len(_MAGIC) + _LENGTH + 8 + len(text)
    for name, _, place, size, _ in places:
        yield bytes(place - written)
        yield arrays[name].data.cast("B") if size else b""
        written = place + size
    yield bytes(first - written)


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
