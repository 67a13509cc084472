"""Pascal VOC's segmentation: a palette PNG with a class for each pixel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from convattn.data.class_values import ClassValues, find_class_list, read_class_list
from convattn.data.listing import list_images
from convattn.data.mask_layout import Folders, pair
from convattn.data.segments import SegmentPart, SegmentReader
from convattn.data.source import DataSource
from convattn.names import listed, shown

BACKGROUND = "background"
_OBJECTS = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_MASKS, _IMAGES, _LISTS = "SegmentationClass", "JPEGImages", Path("ImageSets", "Segmentation")


def open_voc_segments(
    path: str | Path,
    *,
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
    """Open the segmentation of a data set in the format of Pascal VOC.

    Images are in ``JPEGImages``, masks in ``SegmentationClass``; the images of each part are listed
    in ``ImageSets/Segmentation/train.txt`` and ``val.txt``. Without lists, a part of all images
    with a mask is held out. Value 255 is ignored, value 0 is the background. The classes are the 21
    of VOC, or those of ``classes.txt`` or ``labelmap.txt`` in the folder.

    Args:
        path: the folder, or one that holds ``VOCdevkit/VOC2012`` or ``VOC2012``.
        train_split: see `open_masks`, as for all other arguments.
        val_split: the part held out.
        class_names: the classes of a model in the order of their numbers.
        val_fraction: the share held out if there is no list of the validation part.
        split_seed: seed of that split.
        max_broken: the share of images that may be left out before it is an error.
        held_out: relative names of the images to hold out if there is no validation part.
        known_broken: relative names of images that are left out without being read.
        check: whether to decode images and masks, of large folders the headers only.
        value_range: of float and deep images, the values that become 0 and 255.

    Returns:
        A `DataSource` with a mask of class numbers as the target of each image.

    Raises:
        FileNotFoundError: there is no such folder, or no list of a part.
        UnusableDataError: too many images or masks have problems.
        ValueError: the folders or the list of classes are unusable.
    """
    root = _find_root(Path(path).expanduser())
    folders = Folders(root / _IMAGES, root / _MASKS)
    images, masks = (list_images(folder).images for folder in (folders.images, folders.masks))
    reader = SegmentReader(f"voc:{path}", str(root), max_broken, known_broken, check)
    train_list, val_list = _find_lists(root, train_split, val_split)
    everything = pair(images, masks, folders)
    train = (
        _with_mask(everything) if train_list is None else _listed(everything, train_list, folders)
    )
    val = None if val_list is None else _listed(everything, val_list, folders)
    return reader.read(
        train,
        val,
        ClassValues.of_list(_names(root), ignored=255),
        class_names=class_names,
        val_fraction=val_fraction,
        split_seed=split_seed,
        held_out=held_out,
        value_range=value_range,
    )


def _find_root(folder: Path) -> Path:
    """Return the folder that holds the masks: ``folder`` or one at most two levels below it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(folder)}; voc:DIR needs one")
    found = [folder / _MASKS] if (folder / _MASKS).is_dir() else []
    for pattern in (f"*/{_MASKS}", f"*/*/{_MASKS}"):
        found = found or sorted(folder.glob(pattern))
    if not found:
        raise ValueError(
            f"{shown(folder)} has no folder {_MASKS} with a mask for each image, so it has no "
            "class for each pixel; boxes are read for detection (targets='boxes')"
        )
    if len(found) > 1:
        names = [mask.parent.relative_to(folder).as_posix() for mask in found]
        raise ValueError(
            f"{shown(folder)} holds several data sets, {listed(names)}; write "
            f"voc:{shown(found[-1].parent)} for one of them"
        )
    return found[0].parent


def _find_lists(root: Path, train_split: str, val_split: str) -> tuple[Path | None, Path | None]:
    """Return the lists of the images to learn from and to hold out; None if there is no list."""
    folder = root / _LISTS
    names = {"validation": "val", "valid": "val", "training": "train"}
    train, val = (folder / f"{names.get(split, split)}.txt" for split in (train_split, val_split))
    if train.is_file():
        if not val.is_file() and val.stem != "val":
            raise FileNotFoundError(f"there is no list {shown(val)} for val_split={val_split}")
        return train, val if val.is_file() else None
    if train.stem == "train" and (folder / "trainval.txt").is_file():
        return folder / "trainval.txt", None
    if train.stem != "train" or val.is_file():
        raise FileNotFoundError(f"there is no list {shown(train)} for train_split={train_split}")
    return None, None


def _with_mask(part: SegmentPart) -> SegmentPart:
    """Return the images that have a mask; VOC has masks for some images only."""
    rows = [row for row, mask in enumerate(part.masks) if mask]
    images, masks = ([paths[row] for row in rows] for paths in (part.images, part.masks))
    return SegmentPart(part.title, images, masks, part.spare)


def _listed(everything: SegmentPart, file: Path, folders: Folders) -> SegmentPart:
    """Return the images that a file lists, one name in each line."""
    rows = {Path(path).stem: row for row, path in enumerate(everything.images)}
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    names = dict.fromkeys(line.split()[0] for line in lines if line.strip())
    if not names:
        raise ValueError(f"{shown(file)} lists no images")
    images, masks = [], []
    for name in names:
        row = rows.get(name, rows.get(Path(name).stem))
        missing = str(folders.images / f"{name}.jpg")
        images.append(missing if row is None else everything.images[row])
        masks.append("" if row is None else everything.masks[row])
    return SegmentPart(str(file), images, masks)


def _names(root: Path) -> list[str]:
    """Return the names of the classes, of which the first one is the background."""
    found = find_class_list(root)
    if found is None:
        return [BACKGROUND, *_OBJECTS]
    names = read_class_list(found)
    is_complete = names[0].strip("_").lower() == BACKGROUND
    return names if is_complete else [BACKGROUND, *names]
