"""The images in a folder and below it, and what lies there that is not used."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.images import is_image_file
from convattn.names import counted, natural_key, shown
from convattn.progress import Progress

# Folders that operating systems and file servers make for themselves, in lower case.
_SYSTEM = frozenset([
    "__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "found.000",
    "lost+found", "system volume information",
])  # fmt: skip
# Files that lie beside images as a matter of course, and that nobody takes for images.
_SIDECARS = frozenset([
    ".bat", ".bib", ".cfg", ".conf", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini",
    ".ipynb", ".json", ".jsonl", ".lnk", ".lock", ".log", ".md", ".md5", ".ods", ".odt", ".pickle",
    ".pkl", ".py", ".pyc", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".sql", ".tex", ".toml",
    ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xmp", ".xml", ".yaml", ".yml",
])  # fmt: skip
_ENDING = re.compile(r"(?=.*[a-z])[a-z0-9]{1,8}")  # ".0001" and ". Smith" are no endings
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"RIFF", b"8BPS",
    b"\x00\x00\x00\x0cjP", b"\x00\x00\x00\x0cJXL",
)  # fmt: skip


@dataclass
class Listing:
    """What a folder holds.

    Args:
        images: paths of the images, in natural order.
        subfolders: names of the folders just below that have images in or below them; where there
            is one folder and nothing else, of those in it.
        others: how many files, by ending, are no images that can be read, but may be data.
        system: how many folders, by name, an operating system made for itself.
    """

    images: list[str] = field(default_factory=list)
    subfolders: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Level:
    """Names in one folder, in natural order: folders, images, other files, folders of systems."""

    folders: list[str]
    images: list[str]
    others: list[str]
    system: list[str]


def find_images(folder: str | Path) -> list[str]:
    """Return the image files in ``folder`` and below it, in natural order."""
    return list_images(folder).images


def list_images(folder: str | Path, progress: Progress | None = None) -> Listing:
    """List the images in ``folder`` and below it; a link to a folder above is not followed.

    Args:
        folder: where to look.
        progress: redrawn while the files are listed.
    """
    place, found, seen = str(folder), Listing(), set[str]()
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
            if not entry.is_dir():
                files = images if is_image_file(Path(entry.name)) else others
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
    """Return a sentence on the files that were passed over, and one on the folders of systems."""
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
    """Return such as "100 .tga, 20 without ending": the most frequent first."""
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
        return []
    seen.add(place)
    level = read_level(folder, progress)
    found.images += [os.path.join(folder, name) for name in level.images]
    found.others.update(filter(None, (_kind(folder, name) for name in level.others)))
    found.system.update(level.system)
    return level.folders


def _has_images(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_image_file(Path(entry.name)) for entry in entries)
    except PermissionError:  # as of a disk's bin
        return False


def _kind(folder: str, name: str) -> str:
    """What to call a file that is not read, "" for those that need no word."""
    stem, ending = os.path.splitext(name.lower())
    if ending in (".gz", ".bz2", ".xz"):
        ending = os.path.splitext(stem)[1] + ending
    if _ENDING.fullmatch(ending.replace(".", "")):
        return "" if ending in _SIDECARS else ending
    path = os.path.join(folder, name)
    if os.path.islink(path) and not os.path.exists(path):
        return "links to nothing"
    return "without ending" if os.path.isfile(path) and _begins_as_image(path) else ""


def _begins_as_image(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or head[4:8] == b"ftyp" or head[128:] == b"DICM"
