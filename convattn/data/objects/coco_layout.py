"""Where the annotation files and the images of a COCO data set are."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from convattn.data.folders.layout import role_of
from convattn.names import listed, shown

_OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
_HELD_OUT = ("val", "dev", "eval", "test")  # in the order of preference
_MOST_FILES = 10  # annotation files; if there are more, each belongs to one image
_TRIED = 50  # images that are looked for in each folder


def find_json(root: Path, json: str | Sequence[str] | None) -> tuple[Path, Path | None, list[str]]:
    """Return the annotation files of training and validation, and notes.

    Args:
        root: the folder of the data set.
        json: one file, or one for training and one for validation, relative to ``root``; by default
            they are found by their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the names do not say which file is for training.
    """
    if json is None:
        return _found_json(root)
    first, *others = [_given(root, name, "json") for name in pair("json", json, root)]
    return first, others[0] if others else None, []


def pair(option: str, value: str | Sequence[str], root: Path) -> list[str]:
    """Return one or two paths that an option gives, as a list or as "TRAIN,VAL".

    Raises:
        ValueError: there are more than two.
    """
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        found = [text] if (root / text).exists() else [word.strip() for word in text.split(",")]
    else:
        found = [os.fspath(path) for path in value]
    if not 1 <= len(found) <= 2 or not all(found):
        raise ValueError(
            f"{option}={value} must be one path, or two: {option}=TRAIN or {option}=TRAIN,VAL"
        )
    return found


def find_images(
    root: Path, json: Path, names: Sequence[str], images: str | None
) -> tuple[Path, list[str]]:
    """Return the folder that the file names of an annotation file start from.

    It is the folder that holds the most of the first file names.

    Args:
        root: the folder of the data set.
        json: the annotation file.
        names: the file names in it.
        images: the folder, relative to ``root``; by default it is found by its name.

    Returns:
        The folder, and the folders that were tried.
    """
    if images is not None:
        return _given(root, images, "images"), []
    words = [*_words(json.stem), *_words(json.parent.name)]
    places = [root / place / word for place in (".", "images") for word in words]
    places += [json.parent, root / "images", root / "JPEGImages", root / "imgs", root]
    folders = [folder for folder in dict.fromkeys(places) if folder.is_dir()]
    tried = list(names[:_TRIED])

    def hits(folder: Path) -> int:
        return sum(bool(_as_on_disk(folder, name)) for name in tried)

    return max(folders, key=hits), [shown(folder) for folder in folders]


def names_on_disk(
    root: Path, json: Path, names: Sequence[str], images: str | None
) -> tuple[dict[str, str], str]:
    """Return the names of the image files that an annotation file names differently.

    A name may be in another Unicode form. If no image has the path that the file gives, as after an
    export with the paths of another computer, images are found by their names without folders.

    Args:
        root: the folder of the data set.
        json: the annotation file.
        names: the file names in it.
        images: see `find_images`.

    Returns:
        The names on the disk by the names in the file, for those that differ; and a sentence if
        folders are ignored, else "".
    """
    found = _renamed(find_images(root, json, names, images)[0], names)
    bare = {name: PurePosixPath(name).name for name in names}
    if any(found.values()) or all(bare[name] == name for name in names):
        return {old: new for old, new in found.items() if new and new != old}, ""
    if max(Counter(map(_plain, bare.values())).values()) > 1:
        return {}, ""
    folder = find_images(root, json, list(bare.values()), images)[0]
    others = _renamed(folder, bare.values())
    changed = {name: others[bare[name]] for name in names if others[bare[name]]}
    if not changed:
        return {}, ""
    first = next(iter(changed))
    return changed, (
        f"no image has the path that the file gives, such as {shown(first)}: images are found by "
        f"their names without folders, such as {shown(folder / changed[first])}"
    )


def _renamed(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: _as_on_disk(folder, name) for name in names}


def _as_on_disk(folder: Path, name: str) -> str:
    """Return the name of a file in the Unicode form on the disk, "" if there is no such file."""
    forms = [name] if name.isascii() else [name, _plain(name), unicodedata.normalize("NFD", name)]
    return next((form for form in forms if os.path.isfile(os.path.join(folder, form))), "")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _words(stem: str) -> list[str]:
    """Return the names that a folder of images may have: "train2017" and "train"."""
    for prefix in ("instances_", "annotations_", "instances-", "annotations-"):
        stem = stem.removeprefix(prefix)
    role = role_of(stem)[0]
    others = ["valid", "validation"] if role == "val" else ["training"] if role == "train" else []
    return list(dict.fromkeys(word for word in (stem, role, *others) if word))


def _given(root: Path, name: str, option: str) -> Path:
    path = root / Path(name).expanduser()
    if path.is_dir() if option == "images" else path.is_file():
        return path
    what = "folder" if option == "images" else "file"
    hint = ""
    if Path(name).exists():
        hint = (
            f"; paths are relative to {shown(root)}: write {option}={shown(Path(name).absolute())}"
        )
    raise FileNotFoundError(f"{option}={shown(name)}: there is no {what} {shown(path)}{hint}")


def _found_json(root: Path) -> tuple[Path, Path | None, list[str]]:
    files = _json_files(root)
    if not files:
        raise FileNotFoundError(
            f"{shown(root)} has no annotations/*.json, such as "
            f"{shown(root / 'annotations' / 'instances_train2017.json')}; give the file with "
            "json=FILE, or json=TRAIN,VAL"
        )
    if len(files) == 1:
        return files[0], None, []
    roles = {path: _role(path) for path in files}
    train = [path for path, role in roles.items() if role == "train"]
    if not train and len(files) > _MOST_FILES:
        raise ValueError(
            f"{shown(root)} has {len(files):,} JSON files, such as {shown(_name(root, files[0]))}, "
            "and COCO's format has one for all images: export the data in this format, or give the "
            "file with json=FILE"
        )
    if len(train) != 1:
        raise ValueError(
            f"{shown(root)} has {listed([_name(root, path) for path in files])}: which of them is "
            "for training? Give it with json=FILE, or json=TRAIN,VAL"
        )
    for role in _HELD_OUT:
        held_out = [path for path, other in roles.items() if other == role]
        if len(held_out) > 1:
            names = listed([_name(root, path) for path in held_out])
            raise ValueError(f"which of {names} is held out? Give both files: json=TRAIN,VAL")
        if held_out:
            return train[0], held_out[0], _notes(root, train[0], held_out[0], role, files)
    return train[0], None, _notes(root, train[0], None, "", files)


def _notes(
    root: Path, train: Path, val: Path | None, role: str, files: Sequence[Path]
) -> list[str]:
    notes = []
    if val is not None and role in ("eval", "test"):
        notes.append(
            f"{_name(root, val)} is held out in place of a validation part: the best epoch is "
            "chosen on it"
        )
    if others := [_name(root, path) for path in files if path not in (train, val)]:
        notes.append(f"annotation files that are not used: {listed(others)}")
    return notes


def _json_files(root: Path) -> list[Path]:
    """Return the annotation files of objects, those called instances if there are any."""
    for pattern in ("annotations/*.json", "*.json", "*/_annotations.coco.json", "*/*.json"):
        found = [path for path in sorted(root.glob(pattern)) if not path.name.startswith(".")]
        found = [path for path in found if not path.stem.startswith(_OTHER_KINDS)]
        if named := [path for path in found if path.stem.startswith("instances")]:
            return named
        if found:
            return found
    return []


def _role(path: Path) -> str:
    return role_of(path.stem)[0] or role_of(path.parent.name)[0]


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
