"""Open a data set by its name, such as "digits", "folder:PATH", "coco:DIR" or "timm:NAME"."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from convattn.data.digits import open_digits
from convattn.data.reading import Reading
from convattn.data.source import DataSource, Targets
from convattn.names import check_choice, shown

# For each format, the function that reads each kind of target.
_FORMATS: dict[str, dict[str, str]] = {
    "folder": {"classes": "folders.folder:open_folder"},
    "timm": {"classes": "timm_reader:open_timm"},
    "coco": {"boxes": "objects.coco:open_coco", "instances": "objects.coco:open_coco"},
    "yolo": {"boxes": "objects.yolo:open_yolo", "instances": "objects.yolo:open_yolo"},
    "voc": {"boxes": "objects.voc:open_voc_boxes", "segments": "segments.voc:open_voc_segments"},
    "ade20k": {"segments": "segments.ade20k:open_ade20k"},
    "masks": {"segments": "segments.masks:open_masks"},
}
_PARTS = ("train_split", "val_split")
# The options of each format besides those of `Reading`.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "folder": (),
    "timm": ("root", "download", "value_range", *_PARTS),
    "coco": ("masks", "json", "images"),
    "yolo": ("masks", *_PARTS),
    "voc": _PARTS,
    "ade20k": _PARTS,
    "masks": ("classes", "ignored", *_PARTS),
}
# The options that are an error for all formats but one.
_ONLY = {"masks": ("classes", "ignored"), "coco": ("json", "images")}
_KNOWN = (
    "digits, folder:PATH, timm:NAME (such as timm:torch/cifar10), coco:DIR, yolo:FILE.yaml, "
    "voc:DIR, ade20k:DIR, masks:DIR"
)
# How parts are chosen in formats that do not take train_split and val_split.
_WITHOUT_PARTS = {
    "digits": "a part of the images is held out",
    "folder": "the part is held out that a folder such as val/ or test/ has",
    "coco": "json=TRAIN.json,VAL.json chooses the annotation files",
}
_LACKS = {
    "classes": "no class for a whole image",
    "boxes": "no boxes of objects",
    "instances": "no masks of single objects",
    "segments": "no class for each pixel",
}
_USES = {
    "classes": "classification",
    "boxes": "detection",
    "instances": "detection with masks",
    "segments": "segmentation",
}


def open_dataset(
    name: str,
    *,
    targets: Targets = "classes",
    json: str | Sequence[str] | None = None,
    images: str | Sequence[str] | None = None,
    classes: str | Sequence[str] | None = None,
    ignored: int | None = None,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    max_broken: float = 0.01,
    held_out: Collection[str] | None = None,
    known_broken: Collection[str] = (),
    check: bool = True,
    root: str | Path | None = None,
    download: bool = False,
    train_split: str = "train",
    val_split: str = "validation",
    value_range: Sequence[float] | None = None,
) -> DataSource:
    """Open a data set by name.

    Args:
        name: "digits", "folder:PATH", "timm:NAME", "coco:DIR", "yolo:FILE.yaml", "yolo:DIR",
            "voc:DIR", "ade20k:DIR" or "masks:DIR".
        targets: what the target of an image is: "classes" the number of its class, "boxes" objects
            with boxes, "instances" objects with boxes and masks, "segments" a class for each pixel.
        json: for COCO: the annotation file, or those of training and validation, see `open_coco`.
        images: for COCO: the folder of the images, or those of training and validation.
        classes: for masks: the file with the names of the classes, or the names.
        ignored: for masks: the value of pixels without a class, 255 by default.
        class_names: number the classes as in this list.
        val_fraction: for files without a held-out part: the share to hold out.
        split_seed: for files without a held-out part: seed of the split.
        max_broken: for files: the share of unreadable images, and of entries with problems, that
            may be left out.
        held_out: for files: the images to hold out, see `open_folder`.
        known_broken: for files: the images that could not be read then.
        check: for files: whether to decode all images to find the unreadable ones.
        root: for timm's data sets: where the data is stored.
        download: for timm's data sets: whether to download what is missing.
        train_split: for data sets in parts, except folders and COCO: the part to learn from.
        val_split: for data sets in parts, except folders and COCO: the part held out.
        value_range: of float and deep images, the values that become 0 and 255, see `open_folder`.

    Returns:
        A `DataSource`.

    Raises:
        ValueError: the name has none of these forms, the format has no such targets, or the data is
            unusable.
        FileNotFoundError: there is nothing at the path.
    """
    check_choice("targets", targets, get_args(Targets))
    kind, colon, rest = name.partition(":")
    if kind in _WITHOUT_PARTS:
        _check_no_parts(name, kind, train_split, val_split)
    if name == "digits":
        if targets != "classes":
            raise ValueError(_no_targets("digits", targets))
        return open_digits()
    if kind not in _FORMATS or not colon or (not rest and kind != "timm"):
        hint = f"; did you mean folder:{shown(name)}?" if Path(name).expanduser().is_dir() else "."
        raise ValueError(f"unknown data {name!r}{hint} Known: {_KNOWN}")
    if targets not in _FORMATS[kind]:
        raise ValueError(_no_targets(kind, targets))
    options: dict[str, Any] = {
        "masks": targets == "instances",
        "json": json,
        "images": images,
        "classes": classes,
        "ignored": ignored,
        "root": root,
        "download": download,
        "train_split": train_split,
        "val_split": val_split,
        "value_range": value_range,
    }
    own = _own_options(name, kind, options)
    reader = _reader(kind, targets)
    if kind == "timm":
        return reader(rest, **own)
    reading = Reading(
        class_names=class_names,
        val_fraction=val_fraction,
        split_seed=split_seed,
        max_broken=max_broken,
        held_out=held_out,
        known_broken=known_broken,
        check=check,
        value_range=value_range,
    )
    return reader(rest, **vars(reading)) if kind == "folder" else reader(rest, reading, **own)


def offered_targets(name: str) -> tuple[str, ...]:
    """Return which kinds of targets the format of a data set has, () for an unknown format."""
    kind = name.partition(":")[0]
    return ("classes",) if name == "digits" else tuple(_FORMATS.get(kind, ()))


def _reader(kind: str, targets: str) -> Callable[..., DataSource]:
    module, _, function = _FORMATS[kind][targets].partition(":")
    reader: Callable[..., DataSource] = getattr(import_module(f"convattn.data.{module}"), function)
    return reader


def _own_options(name: str, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a format that are given.

    Raises:
        ValueError: an option is given that only another format has.
    """
    given = {option: value for option, value in options.items() if value is not None}
    for other, (first, second) in _ONLY.items():
        if other != kind and (first in given or second in given):
            raise ValueError(
                f"{first}= and {second}= are for {other}:DIR; {shown(name)} does not use them"
            )
    return {option: given[option] for option in _OPTIONS[kind] if option in given}


def _check_no_parts(name: str, kind: str, train_split: str, val_split: str) -> None:
    """Raise `ValueError` if a part is chosen by name."""
    for option, split, usual in (
        ("train_split", train_split, ("train",)),
        ("val_split", val_split, ("validation", "val")),
    ):
        if split not in usual:
            raise ValueError(
                f"{option}={shown(split)}: {shown(name)} has no parts with names; "
                f"{_WITHOUT_PARTS[kind]}"
            )


def _no_targets(kind: str, targets: str) -> str:
    others = [f"{other}:" for other, offered in _FORMATS.items() if targets in offered]
    own = [f"targets={name!r} for {_USES[name]}" for name in offered_targets(kind)]
    return (
        f"{kind}: has {_LACKS[targets]}; data that starts with {' or '.join(others)} has them. "
        f"{kind}: has {' and '.join(own)}"
    )
