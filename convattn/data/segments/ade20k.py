"""ADE20K, in the form of the scene parsing benchmark with 150 classes."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from convattn.data.reading import Reading
from convattn.data.segments.class_values import ClassValues
from convattn.data.segments.mask_layout import read_parts
from convattn.data.segments.reader import SegmentReader
from convattn.data.source import DataSource
from convattn.names import shown

_FOLDER = "ADEChallengeData2016"
_INFO = "objectInfo150.txt"


def open_ade20k(
    path: str | Path,
    reading: Reading,
    *,
    train_split: str = "training",
    val_split: str = "validation",
) -> DataSource:
    """Open ADE20K: ``images/training``, ``annotations/training``, and the same of ``validation``.

    Value 0 of a mask is ignored, values from 1 on are the classes. Their names are in
    ``objectInfo150.txt``; without this file they are the 150 names of the benchmark.

    Args:
        path: the folder, or the folder that holds ``ADEChallengeData2016``.
        reading: how it is read.
        train_split: the part to learn from.
        val_split: the part held out.

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
    classes = ClassValues.of_list(_names(root / _INFO), ignored=0, first=1)
    return SegmentReader(f"ade20k:{path}", str(root), reading, notes).read(train, val, classes)


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
