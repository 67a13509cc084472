"""Text, JSON and CSV files that are written whole or not at all, and checked when they are read.

A file name that is not UTF-8 has surrogates in Python. Text and CSV files have the bytes of the
name, JSON files have the surrogates as escapes; reading returns the same name.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convattn.names import listed, shown

_TEMPORARY = ".convattn-*.tmp"
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_FIX = "restore it from a copy, or remove it"


class DamagedFileError(ValueError):
    """A file cannot be read: it was changed, cut off, or written by another program.

    Args:
        path: the file.
        reason: what is wrong with it.
        fix: what to do.
    """

    def __init__(self, path: Path, reason: str, fix: str = _FIX) -> None:
        self.what = f"{shown(path)} is damaged: {reason}"
        super().__init__(f"{self.what}; {fix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces ``path`` if no error is raised.

    The temporary file is in the same folder and is flushed to the disk before it is renamed, so
    that a full disk, a crash or a power failure leaves the earlier file. The umask sets its mode.

    Args:
        path: the file to write; its folder must exist.
    """
    temporary = path.parent / _TEMPORARY.replace("*", secrets.token_hex(8))
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = os.fstat(handle).st_mode
        os.close(handle)
        yield temporary
        _set_mode(temporary, mode)
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    else:
        with contextlib.suppress(OSError):  # some systems cannot open or flush a folder
            _flush(path.parent, os.O_RDONLY)
    finally:
        with contextlib.suppress(OSError):  # it is not there, or its folder cannot be written
            temporary.unlink()


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder."""
    for path in folder.glob(_TEMPORARY):
        with contextlib.suppress(OSError):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON; NaN and infinity, which JSON does not have, become null.

    Args:
        path: the file.
        value: values that JSON can represent.
        indent: None writes a mapping with one line for each of its keys, so that long lists take
            little space.
    """
    value = _finite(value)
    if indent is None and isinstance(value, dict):
        lines = [f"  {to_json(str(key))}: {to_json(entry)}" for key, entry in value.items()]
        text = "{\n" + ",\n".join(lines) + "\n}"
    else:
        text = to_json(value, indent)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode() + b"\n")


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON that UTF-8 can encode: surrogates become escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a heading; the cells of columns that a row lacks are empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_csv_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row to a table; a missing file is created, and missing columns are added.

    Raises:
        DamagedFileError: the file is not such a table.
    """
    rows: list[dict[str, Any]] = [*read_csv(path, ())] if path.exists() else []
    found = list(rows[0]) if rows else []
    names = [*found, *(name for name in columns if name not in found)]
    write_csv(path, names, [*rows, row])


def read_text(path: Path) -> str:
    """Read a text; bytes that are not UTF-8 become surrogates.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFileError(path, f"it cannot be read ({error.strerror})") from error


def read_json(path: Path, fix: str = _FIX) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        fix: what the error message advises.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file does not hold an object of JSON.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"it is not JSON ({error})", fix) from error
    if not isinstance(value, dict):
        raise DamagedFileError(
            path, f"it holds a {type(value).__name__} instead of keys and values", fix
        )
    return value


def read_csv(path: Path, columns: Iterable[str], fix: str = _FIX) -> list[dict[str, str]]:
    """Read a table with a heading; blank lines are no rows.

    Args:
        path: the file.
        columns: names that its heading must have; it may have more.
        fix: what the error message advises.

    Returns:
        A mapping per row.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: a column is missing, or a row has another number of cells.
    """
    text = io.StringIO(read_text(path), newline="")
    try:
        heading, *lines = [*csv.reader(text)] or [[]]
    except csv.Error as error:
        raise DamagedFileError(path, f"it is not a table ({error})", fix) from error
    if missing := [name for name in columns if name not in heading]:
        raise DamagedFileError(path, f"its heading has no {listed(missing)}", fix)
    for number, line in enumerate(lines, 2):
        if line and len(line) != len(heading):
            reason = f"row {number} has {len(line)} cells, its heading has {len(heading)}"
            raise DamagedFileError(path, reason, fix)
    return [dict(zip(heading, line, strict=True)) for line in lines if line]


def _set_mode(path: Path, mode: int) -> None:
    """Restore the mode of a temporary file that its writer replaced, if the system permits."""
    if path.stat().st_mode != mode:
        with contextlib.suppress(OSError):
            path.chmod(mode & 0o777)


def _flush(path: Path, flags: int) -> None:
    """Wait until a file or a folder is on the disk, if the file system supports fsync."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(handle)
