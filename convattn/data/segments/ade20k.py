"""ADE20K, in the form of the scene parsing benchmark with 150 classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path

from convattn.data.segments.class_values import ClassValues
from convattn.data.segments.images import SegmentReader
from convattn.data.segments.mask_layout import read_parts
from convattn.data.source import DataSource
from convattn.names import shown

_FOLDER = "ADEChallengeData2016"
_INFO = "objectInfo150.txt"


def open_ade20k(
    path: str | Path,
    *,
    train_split: str = "training",
    val_split: str = "validation",
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    max_broken: float = 0.01,
    held_out: Collection[str] | None = None,
    known_broken: Collection[str] = (),
    check: bool = True,
    value_range: Sequence[float] | None = None,
) -> DataSource:
    """Open ADE20K: ``images/training``, ``annotations/training``, and the same of ``validation``.

    Value 0 of a mask is ignored, values from 1 on are the classes. Their names are in
    ``objectInfo150.txt``; without this file they are the 150 names of the benchmark.

    Args:
        path: the folder, or the folder that holds ``ADEChallengeData2016``.
        train_split: see `open_masks`, as for all other arguments.
        val_split: the part held out.
        class_names: the classes of a model in the order of their numbers.
        val_fraction: the share held out if there is no validation part.
        split_seed: seed of that split.
        max_broken: the share of images that may be left out before it is an error.
        held_out: relative names of the images to hold out if there is no validation part.
        known_broken: relative names of images that are left out without being read.
        check: whether to decode images and masks, of large folders the headers only.
        value_range: of float and deep images, the values that become 0 and 255.

    Returns:
        A `DataSource` with a mask of class numbers as the target of each image.

    Raises:
        FileNotFoundError: there is no such folder.
        UnusableDataError: too many images or masks have problems.
        ValueError: the folders or ``objectInfo150.txt`` are unusable.
    """
    root = Path(path).expanduser()
    if (root / _FOLDER).is_dir():
        root = root / _FOLDER
    train, val, notes = read_parts(root, train_split, val_split)
    reader = SegmentReader(f"ade20k:{path}", str(root), max_broken, known_broken, check)
    reader.notes += notes
    return reader.read(
        train,
        val,
        ClassValues.of_list(_names(root / _INFO), ignored=0, first=1),
        class_names=class_names,
        val_fraction=val_fraction,
        split_seed=split_seed,
        held_out=held_out,
        value_range=value_range,
    )


def _names(file: Path) -> list[str]:
    """Return the names of the classes: the first of several names, unless two classes share it."""
    if not file.is_file():
        return (
            files("convattn.data.segments").joinpath("ade20k_classes.txt").read_text().splitlines()
        )
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8-sig").splitlines()[1:]]
    rows = [row for row in rows if any(row)]
    numbers = [row[0].strip() for row in rows]
    if not rows or numbers != [str(number) for number in range(1, len(rows) + 1)]:
        raise ValueError(
            f"{shown(file)} must have a header and one line for each class, numbered from 1, with "
            "tabs between number and names; remove the file to use the 150 names of ADE20K"
        )
    first = [re.split("[,;]", row[-1])[0].strip() for row in rows]
    return first if len(set(first)) == len(first) else [row[-1].strip() for row in rows]
