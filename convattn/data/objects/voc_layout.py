"""Where the images, the annotations and the lists of a Pascal VOC data set are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.folders.layout import role_of
from convattn.data.images import is_image_file
from convattn.names import listed, nfc, shown

ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
# Folders, in lower case, that say only which kind of file they hold: `_stem` leaves them out.
_KINDS = frozenset([
    "annotations", "annotation", "annots", "labels", "xml", "xmls", "jpegimages", "images", "image",
    "imgs", "img", "photos",
])  # fmt: skip
_FLAG = re.compile(r"\s+-?[01]$")
_PARTS = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class VocPart:
    """A part of the data set.

    Args:
        name: of the list, "" if there is none.
        images: the names of the images, without an ending.
    """

    name: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class VocFiles:
    """The files of a data set with boxes.

    Args:
        root: the folder of the data set.
        annotations: XML files by the names of the images, relative to ``root``.
        images: images by their names, relative to ``root``.
    """

    root: Path
    annotations: Mapping[str, str]
    images: Mapping[str, str]


def find_files(path: Path) -> VocFiles:
    """Find the annotations and images: in their own folders, or beside each other.

    Raises:
        FileNotFoundError: there are no annotations.
        ValueError: the folder holds several data sets.
    """
    try:
        root = find_root(path, ANNOTATIONS)
    except FileNotFoundError:
        found = files_by_stem(path, _is_xml)
        if not found:
            raise
        return VocFiles(path, found, files_by_stem(path, is_image_file))
    images = root / IMAGES if (root / IMAGES).is_dir() else root
    return VocFiles(
        root,
        files_by_stem(root / ANNOTATIONS, _is_xml, root),
        files_by_stem(images, is_image_file, root),
    )


def _is_xml(path: Path) -> bool:
    return path.suffix.lower() == ".xml" and not path.name.startswith(".")


def find_root(path: Path, folder: str) -> Path:
    """Return the folder that holds ``folder``: the given one, or the only one of those below.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    places = [path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if (place / folder).is_dir()]
    if not found:
        raise FileNotFoundError(
            f"{shown(path)} has no folder {folder}; voc:DIR needs {shown(path / folder)}"
            if path.is_dir()
            else f"there is no folder {shown(path)}"
        )
    if found[0] != path and len(found) > 1:
        names = listed([place.relative_to(path).as_posix() for place in found])
        raise ValueError(f"{shown(path)} holds several data sets: {names}; give one of them")
    return found[0]


def find_parts(
    root: Path, lists: str, everything: Sequence[str], train: str, val: str
) -> tuple[VocPart, VocPart | None, list[str]]:
    """Return the part to learn from, the part held out, and notes.

    Args:
        root: the folder of the data set.
        lists: the folder of the lists, such as "ImageSets/Main".
        everything: the names of all images, which are learnt from where there are neither lists nor
            folders such as "train".
        train: name of the list to learn from.
        val: name of the list that is held out; "validation" takes val, else test, else none.

    Raises:
        ValueError: there is no such list.
    """
    folder = root / lists
    found = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    usual = [name for name in _PARTS if name in found]
    folders = {} if usual else _by_folder(everything)
    if folders:
        usual = [name for name in _PARTS if name in folders]
        found = dict.fromkeys(folders, root)
    if not usual and train == "train" and val == "validation":
        return VocPart("", tuple(everything)), None, []
    if train == "train" and "train" not in found and "trainval" in found:
        train = "trainval"
    notes = []
    if val in ("validation", "val") and "val" in found and train != "trainval":
        val = "val"
    elif val == "validation" and "test" in found:
        val = "test"
        notes.append(
            f"{'folder test' if folders else f'{lists}/test.txt'} is held out in place of a "
            "validation part: the best epoch is chosen on it"
        )
    elif val == "validation":
        val = ""
    for option, name in (("train_split", train), ("val_split", val)):
        if folders and name and name not in found:
            raise ValueError(
                f"{option}={name}: {shown(root)} has no such folder; it has {listed(usual)}"
            )
        if name and name not in found:
            raise ValueError(
                f"{option}={name}: there is no {shown(folder / f'{name}.txt')}; {shown(folder)} "
                f"has {listed(usual or list(found)) or 'no lists'}"
            )
    known = set(everything)

    def part(name: str) -> VocPart:
        return VocPart(name, tuple(folders.get(name) or _read_list(found[name], known)))

    return part(train), part(val) if val else None, notes


def files_by_stem(
    folder: Path, is_wanted: Callable[[Path], bool], root: Path | None = None
) -> dict[str, str]:
    """Return the files in a folder and below it by their names without the ending.

    A name has the folders of the file, but not those that say only which kind of file they hold:
    the name of "train/images/1.jpg" is "train/1".

    Args:
        folder: the folder.
        is_wanted: whether a file is one of them.
        root: what the files are relative to, by default ``folder``.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in sorted(files) if is_wanted(path := Path(place, name))]
    return {_stem(path.relative_to(folder)): _relative(path, root or folder) for path in found}


def _stem(path: Path) -> str:
    folders = [name for name in path.parts[:-1] if name.lower() not in _KINDS]
    return nfc("/".join([*folders, path.stem]))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _by_folder(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names in each folder such as "train" by its role, {} without such folders."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder, slash, _ = name.partition("/")
        found.setdefault(role_of(folder)[0] if slash else "", []).append(name)
    return found if "train" in found and "" not in found else {}


def _read_list(path: Path, known: set[str]) -> tuple[str, ...]:
    """Return the names in a list: "1" for a line "1 -1" or "1.jpg", with a flag or an ending."""
    text = path.read_bytes().decode("utf-8", "surrogateescape").lstrip("\ufeff")
    lines = [nfc(line.strip()) for line in text.splitlines() if line.strip()]
    return tuple(dict.fromkeys(_listed_name(line, known) for line in lines))


def _listed_name(line: str, known: set[str]) -> str:
    name = _FLAG.sub("", line)
    for form in (line, name, _stem(Path(line.replace("\\", "/"))), _stem(Path(name))):
        if form in known:
            return form
    return name
