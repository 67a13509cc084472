"""Data sets in COCO's format."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from convattn.data.objects.cache import index_path
from convattn.data.objects.coco_layout import find_images, find_json, pair
from convattn.data.objects.coco_parser import CocoParser
from convattn.data.objects.index import ObjectIndex
from convattn.data.objects.reader import ObjectPart, ObjectReader
from convattn.data.reading import Reading
from convattn.data.source import DataSource, relative_name
from convattn.names import shown

_LOOKED_FOR = 50  # images of a stored index


def open_coco(
    path: str | Path,
    reading: Reading,
    *,
    json: str | Sequence[str] | None = None,
    images: str | Sequence[str] | None = None,
    masks: bool = False,
) -> DataSource:
    """Open a data set in COCO's format.

    ``annotations/instances_train2017.json`` and ``instances_val2017.json`` are found, with images
    in ``train2017/`` or ``images/train2017/``; other years and other usual names too. Of a single
    annotation file, a part of the images is held out. Classes are numbered in the order of the ids
    of the categories, which may have gaps; categories without objects are classes too.

    Args:
        path: the folder.
        reading: how it is read.
        json: the annotation file, or those of training and validation, relative to the folder.
        images: the folder of the images, or those of training and validation, relative to the
            folder.
        masks: whether targets have masks.

    Returns:
        A `DataSource`; ``problems`` names what was left out.

    Raises:
        FileNotFoundError: there is no such folder, annotation file or folder of images.
        UnusableDataError: an annotation file is broken, too many images or objects have problems.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(root)}; coco:DIR needs one")
    files = find_json(root, json)
    folders = pair("images", images, root) if images is not None else [None]
    jsons = [file for file in files[:2] if file is not None]
    if len(folders) > len(jsons):
        raise ValueError(
            f"images={images} names two folders, but there is one annotation file: give one "
            "folder, or two files with json=TRAIN,VAL"
        )
    folders = folders * len(jsons) if len(folders) == 1 else folders
    parts = [read_part(root, file, folder) for file, folder in zip(jsons, folders, strict=True)]
    top = _top(root, [part.folder for part in parts])
    parts = [replace(part, file=relative_name(part.file, top)) for part in parts]
    reader = ObjectReader(f"coco:{path}", top, reading, files[2], masks=masks)
    return reader.read(*parts)


def read_part(root: Path, file: Path, images: str | None) -> ObjectPart:
    """Return the images and objects of an annotation file.

    Args:
        root: the folder of the data set.
        file: the annotation file.
        images: the folder of the images; by default it is found.
    """
    cached = index_path("coco", [file])
    index = ObjectIndex.load(cached)
    if index is None or not _has_images(root, file, index, images):
        with _no_collection():
            index, is_complete = CocoParser(root, file, images).parse()
        if is_complete:
            index = index.stored(cached)
    folder, _ = find_images(root, file, index.names(), images)
    return ObjectPart(index, str(folder), str(file))


def _has_images(root: Path, file: Path, index: ObjectIndex, images: str | None) -> bool:
    """Return whether one of the first images exists; if not, the images may have new names."""
    names = [index.name(row) for row in range(min(_LOOKED_FOR, len(index)))]
    folder = find_images(root, file, names, images)[0]
    return not names or any(os.path.isfile(folder / name) for name in names)


def _top(root: Path, folders: Sequence[str]) -> str:
    """Return the folder that relative names start from: ``root``, if it has the images."""
    try:
        below = os.path.commonpath([root.absolute(), *map(os.path.abspath, folders)])
    except ValueError:  # several drives
        return str(root)
    is_below = below == str(root.absolute())
    return str(root) if is_below else os.path.commonpath(list(map(os.path.abspath, folders)))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Turn the garbage collector off, which would traverse millions of new lists repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
