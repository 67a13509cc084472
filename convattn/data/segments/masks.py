"""A folder of images and a folder of masks, 8-bit grey or palette images of class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convattn.data.folders.layout import unwrap
from convattn.data.reading import Reading
from convattn.data.segments.class_values import ClassValues, find_class_list, read_class_list
from convattn.data.segments.mask_layout import read_parts
from convattn.data.segments.reader import SegmentReader
from convattn.data.source import DataSource
from convattn.names import shown


def open_masks(
    path: str | Path,
    reading: Reading,
    *,
    classes: str | Path | Sequence[str] | None = None,
    ignored: int = 255,
    train_split: str = "train",
    val_split: str = "validation",
) -> DataSource:
    """Open a folder of images with masks.

    The folders are ``images/train`` and ``masks/train``, ``train/images`` and ``train/masks``,
    ``train`` and ``train_masks``, each with other parts beside ``train``, or ``images`` and
    ``masks``; other usual names too. A mask has the name of its image with any extension. The names
    of the classes are in ``classes.txt``, one in each line: the first one for the value 0. Masks of
    classes without names are always decoded.

    Args:
        path: the folder.
        reading: how it is read.
        classes: a file with the names of the classes, or the names; by default ``classes.txt`` or,
            if there is none, the values that the masks hold.
        ignored: the value of pixels without a class. If the list of classes has a line for this
            value, that line is no class.
        train_split: the part to learn from.
        val_split: the part held out; without a validation part, images of ``train_split`` are.

    Returns:
        A `DataSource` with a mask of class numbers as the target of each image.

    Raises:
        FileNotFoundError: there is no such folder.
        UnusableDataError: too many images or masks have problems.
        ValueError: the folders or the list of classes are unusable.
    """
    root = Path(path).expanduser()
    if not 0 <= ignored <= 255:
        raise ValueError(f"ignored={ignored} must be a value of a mask, 0 to 255; 255 is usual")
    train, val, notes = read_parts(root, train_split, val_split)
    names = _class_names(root, classes)
    values = None if names is None else ClassValues.of_list(names, ignored)
    reader = SegmentReader(f"masks:{path}", str(root), reading, notes)
    return reader.read(train, val, values, ignored=ignored)


def _class_names(root: Path, classes: str | Path | Sequence[str] | None) -> Sequence[str] | None:
    """Return the names of the classes that are given, or those of the file in the folder."""
    if classes is None:
        place = unwrap(root)
        found = find_class_list(root) or find_class_list(place)
        return None if found is None else read_class_list(found)
    if not isinstance(classes, str | Path):
        return [str(name) for name in classes]
    files = [root / classes, Path(classes).expanduser()]
    for file in files:
        if file.is_file():
            return read_class_list(file)
    raise FileNotFoundError(
        f"there is no file {shown(files[0])} and no file {shown(files[1])} with the names of the "
        f"classes (classes={shown(classes)})"
    )
