"""The images in a folder and below it, and the files there that are not used."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.images import EXTENSIONS, is_image_file
from convattn.names import counted, natural_key, shown
from convattn.progress import Progress

# Folders that operating systems and file servers make, in lower case.
_SYSTEM = frozenset([
    "__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "found.000",
    "lost+found", "system volume information",
])  # fmt: skip
# Extensions of files that often accompany images, and that are no images.
_SIDECARS = frozenset([
    ".bat", ".bib", ".cfg", ".conf", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini",
    ".ipynb", ".json", ".jsonl", ".lnk", ".lock", ".log", ".md", ".md5", ".ods", ".odt", ".pickle",
    ".pkl", ".py", ".pyc", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".sql", ".tex", ".toml",
    ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xmp", ".xml", ".yaml", ".yml",
])  # fmt: skip
_EXTENSION = re.compile(r"(?=.*[a-z])[a-z0-9]{1,8}")  # not ".0001" and ". Smith"
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"RIFF", b"8BPS",
    b"\x00\x00\x00\x0cjP", b"\x00\x00\x00\x0cJXL",
)  # fmt: skip


@dataclass
class Listing:
    """The contents of a folder.

    Args:
        images: paths of the images, in natural order.
        subfolders: names of the folders directly in the folder that hold images at any depth; of a
            folder that holds only one folder, the names in that one.
        others: number of files that are not read but may be data, by extension.
        system: number of folders that operating systems make, by name.
    """

    images: list[str] = field(default_factory=list)
    subfolders: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Level:
    """Names in one folder, in natural order; ``system`` has folders that systems make."""

    folders: list[str]
    images: list[str]
    others: list[str]
    system: list[str]


def find_images(folder: str | Path) -> list[str]:
    """Return the image files in ``folder`` and below it, in natural order."""
    return list_images(folder).images


def list_images(folder: str | Path, progress: Progress | None = None) -> Listing:
    """List the images in ``folder`` and below it.

    A link to a folder above, or to one that is listed already, is not followed but counted.

    Args:
        folder: where to look.
        progress: redrawn while the files are listed.
    """
    place, found, seen = str(folder), Listing(), _folders_above(folder)
    children = _add_files(place, found, seen, progress)
    while len(children) == 1 and not found.images:
        place = os.path.join(place, children[0])
        children = _add_files(place, found, seen, progress)
    for name in children:
        before = len(found.images)
        _add_tree(os.path.join(place, name), found, seen, progress)
        if len(found.images) > before:
            found.subfolders.append(name)
    return found


def read_level(folder: str | Path, progress: Progress | None = None) -> Level:
    """Read one folder, without those below it; names that start with a dot are hidden.

    Args:
        folder: where to look.
        progress: redrawn for every file.
    """
    folders, images, others, system = list[str](), list[str](), list[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if progress is not None:
                progress.advance(0)
            hidden = entry.name.startswith(".")
            if not _is_true(entry.is_dir):
                is_image = is_image_file(Path(entry.name)) and _is_file_or_broken_link(entry)
                files = images if is_image else others
                files += [] if hidden else [entry.name]
            elif entry.name.lower() in _SYSTEM or (hidden and _has_images(entry.path)):
                system.append(entry.name)
            elif not hidden:
                folders.append(entry.name)
    for names in (folders, images, others, system):
        names.sort(key=natural_key)
    return Level(folders, images, others, system)


def holds_images(folder: str | Path) -> bool:
    """Whether there is an image in ``folder`` or below it; the search ends with the first one."""
    waiting, seen = [str(folder)], set[str]()
    while waiting:
        place = waiting.pop()
        if (real := os.path.realpath(place)) in seen:
            continue
        seen.add(real)
        level = read_level(place)
        if level.images:
            return True
        waiting += [os.path.join(place, name) for name in level.folders]
    return False


def passed_over(listings: Iterable[Listing]) -> tuple[str, ...]:
    """Return a sentence on the files that were passed over, and one on the system folders."""
    others, system = Counter[str](), Counter[str]()
    for listing in listings:
        others += listing.others
        system += listing.system
    notes = []
    if others:
        files = counted(others.total(), "file")
        notes.append(f"{files} of other kinds passed over: {format_counts(others)}")
    if system:
        folders = counted(system.total(), "system folder")
        notes.append(f"{folders} passed over: {format_counts(system)}")
    return tuple(notes)


def format_counts(counts: Counter[str], most: int = 6) -> str:
    """Return a list such as "100 .tga, 20 without extension", the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {shown(name)}" for name, count in ranked[:most]]
    rest = sum(count for _, count in ranked[most:])
    return ", ".join([*parts, f"{rest:,} more"] if rest else parts)


def _add_tree(folder: str, found: Listing, seen: set[str], progress: Progress | None) -> None:
    """Add the files in ``folder`` and below it."""
    for name in _add_files(folder, found, seen, progress):
        _add_tree(os.path.join(folder, name), found, seen, progress)


def _add_files(folder: str, found: Listing, seen: set[str], progress: Progress | None) -> list[str]:
    """Add the files in ``folder`` itself; return the names of the folders in it."""
    if (place := os.path.realpath(folder)) in seen:
        found.others["links that repeat a folder"] += 1
        return []
    seen.add(place)
    level = read_level(folder, progress)
    found.images += [os.path.join(folder, name) for name in level.images]
    found.others.update(filter(None, (_kind(folder, name) for name in level.others)))
    found.system.update(level.system)
    return level.folders


def _folders_above(folder: str | Path) -> set[str]:
    """Return the real paths of the folders that hold ``folder``, and of those that hold a link."""
    place = os.path.abspath(folder)
    holder = Path(os.path.realpath(os.path.dirname(place)))
    return set(map(str, (*Path(os.path.realpath(place)).parents, holder, *holder.parents)))


def _is_true(question: Callable[[], bool]) -> bool:
    """Return the answer of the file system, False where it has none, as for a link to itself."""
    try:
        return question()
    except OSError:
        return False


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    """Return False for pipes, sockets and devices, whose reading may never end."""
    return _is_true(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path))


def _has_images(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_image_file(Path(entry.name)) for entry in entries)
    except PermissionError:  # such as the bin of a disk
        return False


def _kind(folder: str, name: str) -> str:
    """Return the kind of a file that is not read, "" for a file that is not worth a note."""
    stem, extension = os.path.splitext(name.lower())
    if extension in EXTENSIONS:  # and it is no regular file
        return "pipes or devices"
    if extension in (".gz", ".bz2", ".xz"):
        extension = os.path.splitext(stem)[1] + extension
    if _EXTENSION.fullmatch(extension.replace(".", "")):
        return "" if extension in _SIDECARS else extension
    path = os.path.join(folder, name)
    if os.path.islink(path) and not os.path.exists(path):
        return "broken links"
    return "without extension" if os.path.isfile(path) and _starts_as_image(path) else ""


def _starts_as_image(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or head[4:8] == b"ftyp" or head[128:] == b"DICM"
