"""Pascal VOC's segmentation: a palette PNG with a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convattn.data.images import is_image_file
from convattn.data.objects.voc_layout import VocPart, files_by_stem, find_parts, find_root
from convattn.data.reading import Reading
from convattn.data.segments.class_values import ClassValues, find_class_list, read_class_list
from convattn.data.segments.reader import SegmentPart, SegmentReader
from convattn.data.source import DataSource
from convattn.names import shown

BACKGROUND = "background"
_OBJECTS = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_MASKS, _IMAGES, _LISTS = "SegmentationClass", "JPEGImages", "ImageSets/Segmentation"


def open_voc_segments(
    path: str | Path,
    reading: Reading,
    *,
    train_split: str = "train",
    val_split: str = "validation",
) -> DataSource:
    """Open the segmentation of a data set in the format of Pascal VOC.

    Images are in ``JPEGImages``, masks in ``SegmentationClass``; the images of each part are listed
    in ``ImageSets/Segmentation/train.txt`` and ``val.txt``. Without lists, a part of all images
    with a mask is held out. Value 255 is ignored, value 0 is the background. The classes are the 21
    of VOC, or those of ``classes.txt``, ``labels.txt`` or ``labelmap.txt`` in the folder.

    Args:
        path: the folder, or one that holds ``VOCdevkit/VOC2012`` or ``VOC2012``.
        reading: how it is read.
        train_split: the list of the images to learn from.
        val_split: the list of the images that are held out; by default that of the validation part
            or, if there is none, of the test part.

    Returns:
        A `DataSource` with a mask of class numbers as the target of each image.

    Raises:
        FileNotFoundError: there is no such folder, or it has no masks.
        UnusableDataError: too many images or masks have problems.
        ValueError: there is no list of a part, or the list of classes is unusable.
    """
    root = find_root(Path(path).expanduser(), _MASKS)
    if not (root / _IMAGES).is_dir():
        raise FileNotFoundError(
            f"{shown(root)} has no folder {_IMAGES}; voc:DIR needs the images in "
            f"{shown(root / _IMAGES)}"
        )
    images, masks = (files_by_stem(root / name, is_image_file) for name in (_IMAGES, _MASKS))
    first, second, notes = find_parts(root, _LISTS, list(masks), train_split, val_split)
    train = _part(root, first, images, masks)
    val = None if second is None else _part(root, second, images, masks)
    classes = ClassValues.of_list(_names(root), ignored=255)
    return SegmentReader(f"voc:{path}", str(root), reading, notes).read(train, val, classes)


def _part(
    root: Path, part: VocPart, images: Mapping[str, str], masks: Mapping[str, str]
) -> SegmentPart:
    """Return the images of a part with their masks.

    Args:
        root: the folder of the data set.
        part: the names of the images.
        images: the file of each image.
        masks: the file of each mask.
    """
    files = [root / _IMAGES / images.get(name, f"{name}.jpg") for name in part.images]
    found = [root / _MASKS / masks[name] if name in masks else "" for name in part.images]
    title = root / _LISTS / f"{part.name}.txt" if part.name else root / _MASKS
    return SegmentPart(str(title), list(map(str, files)), list(map(str, found)))


def _names(root: Path) -> list[str]:
    """Return the names of the classes, of which the first one is the background."""
    found = find_class_list(root)
    if found is None:
        return [BACKGROUND, *_OBJECTS]
    names = read_class_list(found)
    is_complete = names[0].strip("_").lower() == BACKGROUND
    return names if is_complete else [BACKGROUND, *names]
