"""Where in a folder the training part, the held-out parts and the classes are."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.folders.classes import ClassNumbers
from convattn.data.folders.listing import Listing, holds_images, read_level
from convattn.names import listed, natural_key, nfc, shown

_ROLES = {
    **dict.fromkeys(("train", "training", "trainval", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), "val"),
    **dict.fromkeys(("dev", "devel", "development"), "dev"),
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "eval"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_HELD_OUT = ("val", "dev", "eval", "test")  # in the order of preference
_FILLERS = (
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "photo",
    "photos", "picture", "pictures", "pics", "split", "part", "subset", "folder", "classes",
)  # fmt: skip
_COMPOUND = re.compile(f"({'|'.join(_ROLES)})(?:{'|'.join(_FILLERS)})?")
_IMAGES = frozenset([
    "image", "images", "img", "imgs", "jpegimages", "original", "originals", "photos", "frames",
])  # fmt: skip
_ANNOTATIONS = frozenset([
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt",
    "groundtruth", "segmentation", "segmentations", "segmentationclass", "segmentationobject",
    "bbox", "bboxes", "boxes", "trimaps", "imagesets",
])  # fmt: skip
_ORDINARY = frozenset(["frames", "photos", "original", "originals", "boxes"])  # may be classes
_MARKED = re.compile(rf"[\W_]+({'|'.join(sorted(_IMAGES | _ANNOTATIONS))})$")
_UNLABELLED = frozenset(["unknown", "unlabelled", "unlabeled", "all", "none", "dummy", *_FILLERS])
_DEPTH = 3  # levels of folders that hold only one folder, as in an unpacked archive


@dataclass(frozen=True)
class Layout:
    """The parts of a data set.

    Args:
        train: the folder with the class folders to learn from.
        held_out: folders that may be held out, in the order of preference: validation, "dev",
            "eval" and "holdout", "test".
        is_part: whether the name of ``train`` is that of a training part.
        notes: what was decided, one sentence each.
    """

    train: Path
    held_out: tuple[Path, ...] = ()
    is_part: bool = False
    notes: tuple[str, ...] = ()


def find_layout(root: Path, known: Sequence[str] = ()) -> Layout:
    """Find the parts of the data set in ``root`` by the names of its folders.

    Args:
        root: the folder.
        known: the classes of a trained model; a folder of such a name is a class, even if it is
            called "train".

    Raises:
        ValueError: the names mean an unknown layout, or one without a training part.
    """
    place = unwrap(root, known)
    folders = read_level(place).folders
    notes = _note_unwrapped(root, place)
    if folders and _all_known(folders, known):
        return Layout(place, notes=notes)
    in_train = "train" in {role_of(name)[0] for name in place.relative_to(root).parts}
    parts = {} if in_train and not _are_parts(folders) else _parts(place, folders)
    if _is_split(place, parts, folders):
        return _split(place, parts, folders, notes)
    named = [name for role in ("train", *_HELD_OUT) for name in parts.get(role, ())]
    if named and not any(holds_images(place / n) for n in folders if n not in named):
        raise ValueError(_missing_train(place, named))
    _check_train_is_there(root, place)
    return Layout(place, is_part=in_train, notes=(*notes, *_note_classes(named)))


def unwrap(folder: Path, known: Sequence[str] = ()) -> Path:
    """Follow folders that hold only one folder, and return the one that holds several.

    A folder whose name is one of the ``known`` classes is not followed, unless it holds such
    folders itself. Where no folder holds several, ``folder`` is returned.
    """
    place = folder
    for _ in range(_DEPTH + 1):
        level = read_level(place)
        several = len(level.folders) > 1
        if several and (place == folder or not level.images):
            on_the_way = place.relative_to(folder).parts
            is_class = bool(on_the_way) and _any_known(on_the_way, known)
            return folder if is_class and not _all_known(level.folders, known) else place
        if several or not level.folders or level.images:
            break
        place = place / level.folders[0]
    return folder


def role_of(name: str) -> tuple[str, str]:
    """Return the role that a folder's name means, and the other words of the name.

    The role is "train", "val", "dev", "eval", "test" or "". "seg_train" is ("train", "seg"); words
    without a meaning for the role, as in "Train Images" and "val2017", are left out.
    """
    words = [word for word in _words(name) if word not in _FILLERS]
    if match := _COMPOUND.fullmatch("".join(words)):
        return _ROLES[match[1]], ""
    roles = [(word, _ROLES[match[1]]) for word in words if (match := _COMPOUND.fullmatch(word))]
    if len(roles) != 1 or roles[0][0] not in (words[0], words[-1]):
        return "", ""
    return roles[0][1], " ".join(word for word in words if word != roles[0][0])


def is_test_part(name: str) -> bool:
    """Whether a folder's name is that of a test part, which should not choose the best epoch."""
    return role_of(name)[0] in ("eval", "test")


def looks_unlabelled(name: str, known: Sequence[str]) -> bool:
    """Whether the name of a part's only folder says that its images have no labels.

    Programs that read one folder per class need a folder, such as "unknown", "test" or "0", for
    images without labels.
    """
    words = _words(name)
    if not words:
        return not any(map(str.isdecimal, known))
    return all(word in _UNLABELLED or word in _ROLES for word in words)


def check_annotations(folder: Path, names: Sequence[str]) -> None:
    """Raise `ValueError` if the folders hold images and their annotations, such as masks.

    They do if all their names say so, as "images" and "masks"; or if half of the names do, and most
    files in two of these folders have the same names.
    """
    plain = {name: "".join(_words(name)) for name in names}
    images = [name for name, word in plain.items() if word in _IMAGES]
    marks = [name for name, word in plain.items() if word in _ANNOTATIONS]
    named = len(images) + len(marks)
    all_named = named == len(names) and not {plain[name] for name in marks} <= _ORDINARY
    if not images or not marks or named * 2 < len(names):
        return
    if all_named or any(
        _are_paired(folder / one, folder / other, {plain[one], plain[other]})
        for one in images
        for other in marks
    ):
        raise ValueError(
            f"{shown(folder)} holds {listed(names)}: images and their annotations, as for "
            "detection or segmentation. A classifier learns from images alone, one folder per "
            "class: move the annotations elsewhere, or rename the folders if they are classes"
        )


def find_ambiguity(folder: Path, classes: Mapping[str, Listing]) -> str:
    """Return why the folders in ``folder`` may not be classes, "" if there is no reason.

    Raises:
        ValueError: the class folders hold images and masks.
    """
    below = {
        name: list(map(nfc, listing.subfolders))
        for name, listing in classes.items()
        if listing.images
    }
    if same := _common_names(list(below.values())):
        check_annotations(folder / next(iter(below)), same)
        return f"its folders {listed(list(below))} hold folders of the same names, {listed(same)}"
    return _ambiguity_below(below)


def _are_paired(images: Path, marks: Path, words: Collection[str]) -> bool:
    """Whether most files in one folder have the same names as files in the other.

    Images of any two classes may be called "1" and "2": where the folders may be classes, names
    that are numbers do not count.
    """
    stems = [_stems(folder) for folder in (images, marks)]
    if not _ORDINARY.isdisjoint(words):
        stems = [{stem for stem in found if not stem.isdecimal()} for found in stems]
    fewer = min(map(len, stems))
    return fewer > 0 and len(stems[0] & stems[1]) * 2 > fewer


def _stems(folder: Path) -> set[str]:
    """Return the names of the files, without extensions and without words such as "_mask"."""
    names = (os.path.splitext(name)[0] for *_, files in os.walk(folder) for name in files)
    return {_MARKED.sub("", name.casefold()) for name in names if not name.startswith(".")}


def _ambiguity_below(below: Mapping[str, list[str]]) -> str:
    """Return why one of the folders may be a data set rather than a class."""
    names = {_folded(name): name for name in below}
    for name, inner in below.items():
        roles = {role_of(other)[0] for other in inner}
        if "train" in roles and len(roles - {""}) > 1:
            return f"{name!r} holds parts of a data set, {listed(inner)}"
        siblings = names.keys() & set(map(_folded, inner))
        if len(siblings - {_folded(name)}) > 1:
            return f"{name!r} holds folders of the same names as those beside it, " + listed(
                sorted(names[sibling] for sibling in siblings)
            )
    return ""


def advise(folder: Path) -> str:
    """Return what a user can do about a folder that can be read in two ways."""
    path = shown(folder)
    return (
        f"If these are parts of the data set, call them train and val ({path}/train/cat/1.jpg, "
        f"{path}/val/cat/1.jpg), or join them. If one of them is the data set, give "
        f"folder:{path}/NAME, or move the others elsewhere. If all of them are classes, put them "
        f"into a folder called train ({path}/train/NAME), or make a link: mkdir NEW && ln -s "
        f"{shown(shlex.quote(str(folder.resolve())))} NEW/train, and give folder:NEW"
    )


def _all_known(folders: Sequence[str], known: Sequence[str]) -> bool:
    return None not in ClassNumbers(known).match(folders).values()


def _any_known(folders: Sequence[str], known: Sequence[str]) -> bool:
    return set(ClassNumbers(known).match(folders).values()) != {None}


def _folded(name: str) -> str:
    return nfc(name).casefold()


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers: "TrainSet 2" is train, set."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " ", nfc(name))
    return [w for w in re.split(r"[\W_]+", spaced.casefold()) if w and not w.isdecimal()]


def _parts(place: Path, folders: Sequence[str]) -> dict[str, list[str]]:
    """Return the folders of each role, folders first whose names have no other words."""
    roles = {name: role for name in folders if (role := role_of(name))[0]}
    stems = {stem: _by_role(roles, stem) for stem in sorted({stem for _, stem in roles.values()})}
    plain = stems.pop("", {})
    whole = [parts for parts in stems.values() if "train" in parts and len(parts) > 1]
    if "train" in plain:
        return plain
    if len(whole) > 1:
        raise ValueError(
            f"{shown(place)} holds parts of several data sets, {listed(list(roles))}: expected "
            f"{shown(place)}/train/cat/1.jpg and {shown(place)}/val/cat/1.jpg"
        )
    if whole:
        return whole[0]
    if plain and len(roles) == len(folders):
        return _by_role(roles, None)
    return plain


def _are_parts(folders: Sequence[str]) -> bool:
    """Whether every folder is a part, and one of them the training part."""
    roles = [role for role, stem in map(role_of, folders) if not stem]
    return len(roles) == len(folders) and "" not in roles and {"train"} < set(roles)


def _by_role(roles: Mapping[str, tuple[str, str]], stem: str | None) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name, (role, other) in sorted(roles.items(), key=lambda item: not _is_exact(item[0])):
        if stem in (None, other):
            parts.setdefault(role, []).append(name)
    return parts


def _is_exact(name: str) -> bool:
    return name.casefold() in _ROLES


def _is_split(place: Path, parts: Mapping[str, list[str]], folders: Sequence[str]) -> bool:
    """Whether there is a training part: with class folders, or where most folders are parts."""
    if "train" not in parts:
        return False
    named = sum(map(len, parts.values()))
    return bool(read_level(place / parts["train"][0]).folders) or (
        len(parts) > 1 and named * 2 > len(folders)
    )


def _split(
    place: Path, parts: Mapping[str, list[str]], folders: Sequence[str], notes: tuple[str, ...]
) -> Layout:
    name, *more = parts["train"]
    if more and _is_exact(name) == _is_exact(more[0]):
        raise ValueError(
            f"{shown(place)} holds several training parts, {listed(parts['train'])}; join them in "
            "one folder called train"
        )
    held_out = [other for role in _HELD_OUT for other in parts.get(role, ())]
    others = [n for n in folders if n not in (name, *held_out) and holds_images(place / n)]
    if others and not held_out:
        _check_siblings(place, name, others)
    if others:
        notes = (*notes, f"folders beside {shown(name)} that are not used: {listed(others)}")
    train = unwrap(place / name)
    notes = (*notes, *_note_unwrapped(place / name, train))
    return Layout(train, tuple(place / other for other in held_out), True, notes)


def _check_siblings(place: Path, train: str, others: Sequence[str]) -> None:
    """Raise `ValueError` if folders beside the training part may be parts or classes too."""
    classes = set(map(_folded, read_level(unwrap(place / train)).folders))
    alike = [n for n in others if classes & set(map(_folded, read_level(place / n).folders))]
    if alike or len(others) > 1:
        raise ValueError(
            f"{shown(place)} holds {train!r} and other folders with images: {listed(others)}. If "
            f"one of these is to be held out, call it val; if they are not to be used, give "
            f"folder:{shown(place / train)}. If all of them are classes, put them into one folder "
            "called train"
        )


def _check_train_is_there(root: Path, place: Path) -> None:
    wrappers = place.relative_to(root).parts
    held_out = [name for name in wrappers if role_of(name)[0] in _HELD_OUT]
    if held_out:
        raise ValueError(_missing_train(root, held_out))


def _missing_train(place: Path, named: Sequence[str]) -> str:
    path = shown(place)
    return (
        f"{path} holds {listed(named)}, but no training part: expected {path}/train/cat/1.jpg and "
        f"{path}/train/dog/1.jpg beside it. To use one part alone, give folder:{path}/"
        f"{shown(named[0])}; if the folders are classes, put them into a folder called train"
    )


def _note_classes(named: Sequence[str]) -> tuple[str, ...]:
    if not named:
        return ()
    return (
        f"read as classes: {listed(named)}; where these are parts of the data set, put the class "
        "folders beside them into a folder called train",
    )


def _note_unwrapped(folder: Path, place: Path) -> tuple[str, ...]:
    wrappers = place.relative_to(folder).parts
    if all(role_of(name)[0] == "train" for name in wrappers):
        return ()
    return (f"the data set is taken from {shown(place)}, the only folder in {shown(folder)}",)


def _common_names(below: Sequence[list[str]]) -> list[str]:
    """Return the names that are common to the folders, [] unless these are most of their names.

    Folders without subfolders do not count if they are the minority.
    """
    originals = {_folded(name): name for inner in reversed(below) for name in inner}
    sets = [set(map(_folded, inner)) for inner in below if inner]
    if len(sets) < 2 or len(sets) * 2 <= len(below):
        return []
    common = set.intersection(*sets)
    few = len(common) < 2 or len(common) * 2 < len(set.union(*sets))
    return [] if few else sorted((originals[name] for name in common), key=natural_key)
