"""Where in a folder the images and masks of each part are, and which belong together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.folders.layout import role_of, unwrap
from convattn.data.folders.listing import list_images, passed_over, read_level
from convattn.data.segments.reader import SegmentPart
from convattn.data.source import relative_name
from convattn.names import listed, nfc, shown

_KINDS = {
    "images": ("jpegimages", "images", "image", "imgs", "img", "frames", "photos"),
    "masks": (
        "segmentationclass", "segmentations", "segmentation", "annotations", "annotation",
        "groundtruth", "annots", "annot", "labels", "label", "masks", "mask", "gt",
    ),
}  # fmt: skip
_ENDING = re.compile(
    r"[ _.-](masks?|labels?|labelids|trainids|seg|segmentation|annotations?|gt|l)$", re.IGNORECASE
)
_LAYOUTS = (
    "images/train with masks/train, train/images with train/masks, train with train_masks, or "
    "images with masks"
)


@dataclass(frozen=True)
class Folders:
    """The folders of the images and of the masks of a part."""

    images: Path
    masks: Path


def find_parts(root: Path) -> tuple[dict[str, Folders], list[str]]:
    """Find the folders of images and masks in ``root``.

    Args:
        root: the folder of the data set, which may lie in folders that hold only one folder.

    Returns:
        The folders of each part, by "train", "val", "dev", "eval", "test", and "" if the images are
        not in parts; and sentences on folders that are passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no images with masks, or two folders could be the same part.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(root)}")
    place = unwrap(root)
    found: dict[tuple[str, str], list[Path]] = {}
    for folder, role, kind in _named(place):
        inner = [
            (path, role or r, kind or k or "images")
            for path, r, k in _named(folder)
            if (r and not role) or (k and not kind)
        ]
        for path, *key in inner or [(folder, role, kind or "images")]:
            found.setdefault((key[0], key[1]), []).append(path)
    for (role, kind), paths in found.items():
        if len(paths) > 1:
            raise ValueError(
                f"two folders in {shown(root)} can be the {kind} of {role or 'the data set'}: "
                f"{listed([_relative(path, root) for path in paths])}; move or rename one"
            )
    roles = {role for role, _ in found}
    both = {role for role in roles if {(role, "images"), (role, "masks")} <= set(found)}
    if not both:
        raise ValueError(
            f"{shown(root)} has no folder of images with a folder of masks: expected {_LAYOUTS}; "
            f"found {listed(read_level(place).folders) or 'no folders'}"
        )
    parts = {r: Folders(found[r, "images"][0], found[r, "masks"][0]) for r in sorted(both)}
    notes = [
        f"{shown(_relative(paths[0], root))} is passed over: it has {kind} only"
        for (role, kind), paths in sorted(found.items())
        if role not in both
    ]
    return parts, notes


def read_parts(
    root: Path, train_split: str, val_split: str
) -> tuple[SegmentPart, SegmentPart | None, list[str]]:
    """List the images and masks to learn from and to hold out.

    Args:
        root: the folder of the data set.
        train_split: name of the part to learn from, such as "train" or "training".
        val_split: name of the part to hold out. If it is "val" or "validation", it may be missing.

    Returns:
        The training part, the held-out part or None, and sentences on what is not used.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no images with masks, or a part is missing.
    """
    parts, notes = find_parts(root)
    learn, hold = _choose(parts, train_split, val_split, shown(root))
    if unused := sorted(set(parts) - {learn, hold}):
        are = "is" if len(unused) == 1 else "are"
        notes.append(
            f"{listed(unused)} of {shown(root)} {are} not used; val_split={unused[-1]} holds out "
            "the images of that part"
        )
    train, others = _read(parts[learn])
    if hold is None:
        return train, None, [*notes, *others]
    val, more = _read(parts[hold])
    return train, val, [*notes, *others, *more]


def _choose(
    parts: dict[str, Folders], train_split: str, val_split: str, where: str
) -> tuple[str, str | None]:
    """Return the parts to learn from and to hold out; None if there is no validation part."""
    learn = _role(train_split)
    if learn not in parts:
        if learn != "train" or "" not in parts:
            raise ValueError(_no_part(where, "train_split", train_split, parts))
        learn = ""
    hold = _role(val_split)
    if hold == learn:
        raise ValueError(
            f"train_split={train_split} and val_split={val_split} are the same part: give two parts"
        )
    if hold in parts:
        return learn, hold
    if hold != "val":
        raise ValueError(_no_part(where, "val_split", val_split, parts))
    return learn, None


def _read(folders: Folders) -> tuple[SegmentPart, tuple[str, ...]]:
    """List the images of a part with their masks, and return sentences on other files.

    A mask has the path of its image below its folder, with any extension, and perhaps with an
    ending such as "_mask". If no mask has such a path, names without folders are compared.
    """
    images, masks = list_images(folders.images), list_images(folders.masks)
    part = _pair(images.images, masks.images, folders)
    if not part.images:
        raise ValueError(f"{shown(folders.images)} holds no images")
    return part, passed_over([images, masks])


def _pair(images: list[str], masks: Sequence[str], folders: Folders) -> SegmentPart:
    """Return images with their masks, by paths or, if no path fits, by names."""
    found = _match(
        [_key(path, folders.images) for path in images],
        {_key(path, folders.masks): path for path in reversed(masks)},
    )
    if not any(found):
        names = [os.path.basename(_key(path, folders.masks)) for path in masks]
        if len(set(names)) == len(names):
            keys = [os.path.basename(_key(path, folders.images)) for path in images]
            found = _match(keys, dict(zip(names, masks, strict=True)))
    used = set(found)
    spare = [path for path in masks if path not in used]
    return SegmentPart(str(folders.images), images, found, spare)


def _match(keys: Sequence[str], masks: Mapping[str, str]) -> list[str]:
    """Return the mask of each key, or that of the key with an ending, "" if there is none."""
    left = set(masks).difference(keys)
    without_ending = {_ENDING.sub("", key): masks[key] for key in left}
    return [masks.get(key) or without_ending.get(key, "") for key in keys]


def _named(folder: Path) -> list[tuple[Path, str, str]]:
    """Return the folders in a folder whose names have a meaning, with their role and kind."""
    found = [(folder / name, *_meaning(name)) for name in read_level(folder).folders]
    return [(path, role, kind) for path, role, kind in found if role or kind]


def _meaning(name: str) -> tuple[str, str]:
    """Return the role and the kind that a folder's name means: "trainannot" is train and masks."""
    text = re.sub(r"[\W\d_]+", "", name.lower())
    for kind, words in _KINDS.items():
        for word in words:
            for rest in (text.removesuffix(word), text.removeprefix(word)):
                if rest != text and (not rest or role_of(rest)[0]):
                    return (role_of(rest)[0] if rest else ""), kind
    return role_of(name)[0], ""


def _role(split: str) -> str:
    return role_of(split)[0] or split


def _no_part(where: str, option: str, split: str, parts: dict[str, Folders]) -> str:
    names = [role for role in parts if role]
    known = (
        f"there are {listed(names)}"
        if names
        else f"its images are not in parts: leave {option} out"
    )
    return f"{where} has no part for {option}={shown(split)}; {known}"


def _key(path: str, folder: Path) -> str:
    return nfc(os.path.splitext(relative_name(path, str(folder)))[0])


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
