"""Where the images, the annotations and the lists of a Pascal VOC data set are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.images import is_image_file
from convattn.names import listed, shown

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
        everything: the names of all images, which are learnt from where there are no lists.
        train: name of the list to learn from.
        val: name of the list that is held out; "validation" takes val, else test, else none.

    Raises:
        ValueError: there is no such list.
    """
    folder = root / lists
    found = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    usual = [name for name in _PARTS if name in found]
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
            f"{lists}/test.txt is held out in place of a validation part: the best epoch is chosen "
            "on it"
        )
    elif val == "validation":
        val = ""
    for option, name in (("train_split", train), ("val_split", val)):
        if name and name not in found:
            raise ValueError(
                f"{option}={name}: there is no {shown(folder / f'{name}.txt')}; {shown(folder)} "
                f"has {listed(usual or list(found)) or 'no lists'}"
            )
    known = set(everything)
    parts = [VocPart(n, _read_list(found[n], known)) if n else None for n in (train, val)]
    assert parts[0] is not None
    return parts[0], parts[1], notes


def images_by_stem(folder: Path) -> dict[str, str]:
    """Return the file name of each image in a folder by its name without the ending."""
    names = sorted(path.name for path in folder.iterdir() if is_image_file(path))
    return {Path(name).stem: name for name in names}


def _read_list(path: Path, known: set[str]) -> tuple[str, ...]:
    """Return the names in a list; a flag, as in "000005 -1", is not part of the name."""
    text = path.read_bytes().decode("utf-8", "surrogateescape").lstrip("\ufeff")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = [line if line in known else line.split()[0] for line in lines]
    return tuple(dict.fromkeys(names))
