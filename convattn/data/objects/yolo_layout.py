"""The YAML file of an Ultralytics YOLO data set: its classes, and where its images are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import yaml

from convattn.data.images import is_image_file
from convattn.data.problems import Problem, UnusableDataError
from convattn.names import listed, natural_key, nfc, shown

_PARTS = ("train", "val", "test")
_ABOVE = 3  # the paths in a list may start from its folder or from one of the folders above
_USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class YoloFile:
    """A YAML file.

    Args:
        path: the file.
        class_names: in the order of their numbers.
        values: what the file holds.
    """

    path: Path
    class_names: tuple[str, ...]
    values: Mapping[str, Any]

    def parts(self) -> list[str]:
        """Return the names of the parts that have images."""
        usual = [name for name in _PARTS if self.values.get(name)]
        others = [
            name
            for name, value in self.values.items()
            if name not in (*_PARTS, "path", "names", "download", "yaml_file")
            and isinstance(value, str)
            and self._places(value)
        ]
        return usual + others

    def choose(self, train: str, val: str) -> tuple[str, str | None]:
        """Return the names of the part to learn from and of the part held out, if there is one.

        Raises:
            ValueError: there is no such part.
        """
        if not self.values.get("train") and train == "train":
            raise _unusable(
                self.path,
                "the file has no train: add train: FOLDER, the folder of the training images",
            )
        if val == "validation":
            val = next((name for name in ("val", "valid", "test") if self.values.get(name)), "")
        for option, name in (("train_split", train), ("val_split", val)):
            if name and not self.values.get(name):
                raise ValueError(
                    f"{option}={name}: {shown(self.path)} has no such part; it has "
                    f"{listed(self.parts())}"
                )
        return train, val or None

    def images(self, part: str) -> list[str]:
        """Return the paths of the images of a part.

        Raises:
            FileNotFoundError: a folder or list does not exist.
            UnusableDataError: the entry is neither a path nor a list of paths.
        """
        entries = self.values[part]
        entries = entries if isinstance(entries, list) else [entries]
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise _unusable(self.path, f"{part} is neither a path nor a list of paths: {entries}")
        found: list[str] = []
        for entry in entries:
            places = self._places(entry)
            if not places:
                tried = listed([str(base) for base in self._bases()])
                raise FileNotFoundError(
                    f"{shown(self.path)}, {part}: there is no {shown(entry)} in {tried}; correct "
                    "path or the entry"
                )
            found += _images_at(places[0])
        return list(dict.fromkeys(found))

    def _bases(self) -> list[Path]:
        """Return the folders that entries may start from, the usual one first."""
        given = str(self.values.get("path") or "").replace("\\", "/")
        beside = self.path.parent
        bases = [beside / Path(given).expanduser(), Path(given)] if given else []
        return list(dict.fromkeys(base.absolute() for base in (*bases, beside)))

    def _places(self, entry: str) -> list[Path]:
        """Return the existing paths that an entry may mean; a leading "../" may be wrong."""
        entry = entry.replace("\\", "/")  # the file may come from Windows
        names = [entry, *([entry[3:]] if entry.startswith("../") else [])]
        places = [base / Path(name).expanduser() for name in names for base in self._bases()]
        return [place for place in places if place.exists()]


def read_yaml(path: Path) -> YoloFile:
    """Read a YAML file, or the one in a folder.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableDataError: it is not the file of a data set.
    """
    if path.is_dir():
        path = _yaml_of(path)
    try:
        values = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {shown(path)}; yolo: needs the YAML file of a data set"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unusable(path, f"the file is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise _unusable(path, "the file must hold keys and values, such as train, val and names")
    return YoloFile(path, _names(path, values), values)


def label_file(image: str) -> str:
    """Return the path of the labels of an image: in the last folder "images", now "labels".

    It may be in another Unicode form, or have the ending ".TXT".
    """
    stem = os.path.splitext(image)[0]
    stem = f"{os.sep}labels{os.sep}".join(stem.rsplit(f"{os.sep}images{os.sep}", 1))
    usual = f"{stem}.txt"
    if os.path.isfile(usual):
        return usual
    names = [stem, *(() if stem.isascii() else (nfc(stem), normalize("NFD", stem)))]
    others = [f"{name}{ending}" for name in names for ending in (".txt", ".TXT")]
    return next(filter(os.path.isfile, others), usual)


def _yaml_of(folder: Path) -> Path:
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if not found:
        raise FileNotFoundError(
            f"{shown(folder)} has no data.yaml: write one with train: FOLDER of the images and "
            "names: the list of the classes, or give yolo:FILE.yaml"
        )
    if len(found) > 1:
        names = listed([path.name for path in found])
        raise ValueError(f"{shown(folder)} has several YAML files, {names}: give yolo:FILE.yaml")
    return found[0]


def _names(path: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    names, count = values.get("names"), values.get("nc")
    if names is None and isinstance(values.get("nc"), int) and values["nc"] > 0:
        return tuple(str(number) for number in range(values["nc"]))
    if names is None:
        raise _unusable(
            path, "the file has no names: add names: [FIRST, SECOND, ...], the list of the classes"
        )
    if isinstance(names, list):
        found = names
    elif isinstance(names, dict):
        found = _numbered(path, names)
    else:
        raise _unusable(path, f"names must be a list or a mapping of numbers, not {names!r}")
    wrong = next((name for name in found if isinstance(name, bool | None | dict | list)), "")
    if wrong != "":
        raise _unusable(
            path, f"names has {wrong!r}, which is no text: write names such as yes and no in quotes"
        )
    if isinstance(count, int) and count != len(found):
        raise _unusable(path, f"names has {len(found)} classes, but nc is {count}: correct one")
    if not found or len(set(map(str, found))) < len(found):
        raise _unusable(
            path, f"names must hold different names, and holds {listed(list(map(str, found)))}"
        )
    return tuple(map(str, found))


def _numbered(path: Path, names: Mapping[Any, Any]) -> list[Any]:
    keys = {int(key) if str(key).isdecimal() else key: name for key, name in names.items()}
    if set(keys) != set(range(len(keys))):
        numbers = ", ".join(map(str, keys))
        raise _unusable(
            path,
            f"names has the numbers {numbers}: expected 0 to {len(keys) - 1}; give each number up "
            "to the greatest one a name, such as unused",
        )
    return [keys[number] for number in range(len(keys))]


def _unusable(path: Path, reason: str) -> UnusableDataError:
    return UnusableDataError(f"{shown(path)}: {shown(reason)}", [Problem(path.name, "", reason)])


def _images_at(place: Path) -> Iterator[str]:
    if place.is_file():
        yield from _listed_images(place)
        return
    for folder, folders, files in os.walk(place, followlinks=True):
        folders.sort(key=natural_key)
        for name in sorted(files, key=natural_key):
            if is_image_file(Path(name)):
                yield os.path.join(folder, name)


def _listed_images(file: Path) -> Iterator[str]:
    """Yield the images that a text file lists, relative to its folder."""
    text = file.read_bytes().decode("utf-8", "surrogateescape").lstrip("\ufeff")
    lines = [line.strip().replace("\\", "/") for line in text.splitlines() if line.strip()]
    bases = [file.parent.absolute(), *file.parent.absolute().parents][:_ABOVE]
    base = next((b for b in bases if lines and (b / lines[0]).is_file()), bases[0])
    for line in lines:
        yield os.path.normpath(os.path.join(base, line))
