"""A folder of images and a folder of masks, 8-bit grey or palette images of class numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from convattn.data.folders.layout import unwrap
from convattn.data.segments.class_values import ClassValues, find_class_list, read_class_list
from convattn.data.segments.images import SegmentReader
from convattn.data.segments.mask_layout import read_parts
from convattn.data.source import DataSource
from convattn.names import shown


def open_masks(
    path: str | Path,
    *,
    classes: str | Path | Sequence[str] | None = None,
    ignored: int = 255,
    train_split: str = "train",
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
    """Open a folder of images with masks.

    The folders are ``images/train`` and ``masks/train``, ``train/images`` and ``train/masks``,
    ``train`` and ``train_masks``, each with other parts beside ``train``, or ``images`` and
    ``masks``; other usual names too. A mask has the name of its image with any extension. The names
    of the classes are in ``classes.txt``, one in each line: the first one for the value 0.

    Args:
        path: the folder.
        classes: a file with the names of the classes, or the names; by default ``classes.txt`` or,
            if there is none, the values that the masks hold.
        ignored: the value of pixels without a class. If the list of classes has a line for this
            value, that line is no class.
        train_split: the part to learn from.
        val_split: the part held out; without a validation part, images of ``train_split`` are.
        class_names: the classes of a model in the order of their numbers.
        val_fraction: the share held out if there is no validation part.
        split_seed: seed of that split.
        max_broken: the share of images that may be left out before it is an error.
        held_out: relative names of the images to hold out if there is no validation part; by
            default a new split is made.
        known_broken: relative names of images that are left out without being read.
        check: whether to decode images and masks, of large folders the headers only; else only
            headers are read. Masks of classes without names are always decoded.
        value_range: of float and deep images, the values that become 0 and 255.

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
    reader = SegmentReader(f"masks:{path}", str(root), max_broken, known_broken, check)
    reader.notes += notes
    names = _class_names(root, classes)
    return reader.read(
        train,
        val,
        None if names is None else ClassValues.of_list(names, ignored),
        ignored=ignored,
        class_names=class_names,
        val_fraction=val_fraction,
        split_seed=split_seed,
        held_out=held_out,
        value_range=value_range,
    )


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
