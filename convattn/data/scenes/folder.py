"""A new folder that is filled completely, or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convattn.names import shown


def check_new(folder: Path) -> None:
    """Raise `FileExistsError` unless ``folder`` is missing or empty."""
    if folder.is_dir():
        entry = next(folder.iterdir(), None)
        if entry is None:
            return
        reason = f"the folder is not empty: it holds {shown(entry.name)}"
    elif folder.exists() or folder.is_symlink():
        reason = "this is a file"
    else:
        return
    raise FileExistsError(f"cannot write into {shown(folder)}: {reason}; name a new folder")


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder in ``folder``; what it holds is moved there if no error is raised.

    Args:
        folder: missing or empty.

    Raises:
        FileExistsError: it has files already.
    """
    check_new(folder)
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".convattn-{secrets.token_hex(8)}.tmp"
    hidden.mkdir()
    try:
        yield hidden
        for entry in sorted(hidden.iterdir()):
            entry.rename(folder / entry.name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if not was_there and not any(folder.iterdir()):
            folder.rmdir()
