"""Pascal VOC's boxes: an XML file for each image."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from convattn.data.objects.cache import index_path
from convattn.data.objects.images import ObjectPart, ObjectReader
from convattn.data.objects.index import Box, EntryError, IndexBuilder, ObjectIndex
from convattn.data.objects.voc_layout import VocPart, find_parts, find_root, images_by_stem
from convattn.data.problems import Problem
from convattn.data.scan import image_sizes
from convattn.data.source import DataSource
from convattn.names import nfc, shown

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_ANNOTATIONS, _IMAGES, _LISTS = "Annotations", "JPEGImages", "ImageSets/Main"


def open_voc_boxes(
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    max_broken: float = 0.01,
    held_out: Collection[str] | None = None,
    known_broken: Collection[str] = (),
    check: bool = True,
    value_range: Sequence[float] | None = None,
    train_split: str = "train",
    val_split: str = "validation",
) -> DataSource:
    """Open the boxes of a data set in the format of Pascal VOC.

    It has ``Annotations/*.xml``, ``JPEGImages/`` and, if it has parts, ``ImageSets/Main/*.txt``.
    The images of val.txt are held out; where there is none those of test.txt, else a part of the
    images. As Pascal VOC counts pixels from 1 and up to and including the last one, the box xmin,
    ymin, xmax, ymax reaches from xmin - 1 to xmax. Objects called difficult are crowds: a detector
    may find them or not.

    Args:
        path: the folder, or one that holds VOC2012 or VOCdevkit/VOC2012.
        class_names: number the classes as in this list; by default the names in the XML files,
            sorted.
        val_fraction: see `open_coco`.
        split_seed: see `open_coco`.
        max_broken: see `open_coco`.
        held_out: see `open_coco`.
        known_broken: see `open_coco`.
        check: see `open_coco`.
        value_range: see `open_coco`.
        train_split: name of the list to learn from.
        val_split: name of the list that is held out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no such list.
        UnusableDataError: too many images or objects have problems.
    """
    root = find_root(Path(path).expanduser(), _ANNOTATIONS)
    if not (root / _IMAGES).is_dir():
        raise FileNotFoundError(f"{shown(root)} has no folder {_IMAGES}")
    stems = sorted(file.stem for file in (root / _ANNOTATIONS).glob("*.xml"))
    first, second, notes = find_parts(root, _LISTS, stems, train_split, val_split)
    pictures = images_by_stem(root / _IMAGES)
    train = _part(root, first, pictures)
    val = None if second is None else _part(root, second, pictures)
    names = {name for part in (train, val) if part for name in part.index.facts.class_names}
    reader = ObjectReader(
        f"voc:{path}",
        str(root),
        max_broken=max_broken,
        known_broken=known_broken,
        check=check,
        notes=notes,
    )
    return reader.read(
        train,
        val,
        class_names=class_names,
        default_names=sorted(names),
        val_fraction=val_fraction,
        split_seed=split_seed,
        held_out=held_out,
        value_range=value_range,
    )


def _part(root: Path, part: VocPart, pictures: dict[str, str]) -> ObjectPart:
    files = [root / _ANNOTATIONS / f"{name}.xml" for name in part.images]
    cached = index_path(f"voc {part.name}", [root, root / _IMAGES, *files])
    index = ObjectIndex.load(cached)
    if index is None:
        parser = _Parser(root, pictures)
        index = parser.parse(part.images)
        index = index.stored(cached) if parser.is_complete else index
    return ObjectPart(index, str(root / _IMAGES), noun="object")


@dataclass
class _Object:
    row: int
    number: int
    name: str
    box: Box
    crowd: bool


@dataclass
class _Parser:
    """Reads the XML files of a part."""

    root: Path
    pictures: dict[str, str]
    built: IndexBuilder = field(default_factory=IndexBuilder)
    found: list[_Object] = field(default_factory=list)
    is_complete: bool = True  # whether nothing was read from the images

    def parse(self, names: Sequence[str]) -> ObjectIndex:
        """Return the index of the images with these names."""
        for name in names:
            file = f"{_ANNOTATIONS}/{name}.xml"
            try:
                tree = ElementTree.parse(self.root / file).getroot()
            except FileNotFoundError:
                self._image_problem(file, "the annotation file is missing")
            except (ElementTree.ParseError, ValueError, LookupError) as error:
                self._image_problem(file, f"the file is not XML: {error}")
            except OSError as error:
                self._image_problem(file, f"the file cannot be read: {error.strerror}")
            else:
                self._read(name, file, tree)
        classes = sorted({entry.name for entry in self.found})
        labels = {name: number for number, name in enumerate(classes)}
        for entry in self.found:
            self.built.add_object(
                entry.row, labels[entry.name], entry.box, entry=entry.number, crowd=entry.crowd
            )
        return self.built.build(classes)

    def _image_problem(self, file: str, reason: str) -> None:
        self.built.image_problems.append(Problem(file, "", reason))

    def _read(self, name: str, file: str, tree: ElementTree.Element) -> None:
        picture = self.pictures.get(name)
        if picture is None:
            given = tree.findtext("filename") or ""
            is_there = given and (self.root / _IMAGES / given).is_file()
            picture = given if is_there else f"{name}.jpg"
        size = _side(tree, "width"), _side(tree, "height")
        if min(size) <= 0:
            size = image_sizes([str(self.root / _IMAGES / picture)])[0]
            self.is_complete = False
        row = self.built.add_image(picture, size, len(self.built))
        for number, entry in enumerate(tree.iter("object"), 1):
            self.built.entries += 1
            try:
                self.found.append(self._object(entry, file, row, number, size))
            except EntryError as error:
                self.built.problems.append(Problem(file, f"object {number}", str(error)))

    def _object(
        self, entry: ElementTree.Element, file: str, row: int, number: int, size: tuple[int, int]
    ) -> _Object:
        name = nfc((entry.findtext("name") or "").strip())
        if not name:
            raise EntryError("the object has no name")
        box = entry.find("bndbox")
        if box is None:
            raise EntryError("the object has no bndbox")
        x1, y1, x2, y2 = (_number(box, side) for side in _SIDES)
        corners = x1, y1, x2, y2
        if x2 > x1 and y2 > y1:
            corners = x1 - 1, y1 - 1, x2, y2
        elif min(size) <= 0:
            raise EntryError("the size of the image is not known")
        crowd = (entry.findtext("difficult") or "").strip() == "1"
        cut: list[str] = []
        box_in_image = self.built.clean_box(corners, size, cut.append)
        self.built.cut += [Problem(file, f"object {number}", why) for why in cut]
        return _Object(row, number, name, box_in_image, crowd)


def _number(box: ElementTree.Element, side: str) -> float:
    text = (box.findtext(side) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise EntryError(f"a coordinate is not a number: {side} '{shown(text)}'") from None


def _side(tree: ElementTree.Element, name: str) -> int:
    """Return a width or height, 0 if the file does not say it."""
    try:
        value = float(tree.findtext(f"size/{name}") or "")
    except ValueError:
        return 0
    return int(value) if math.isfinite(value) and 0 < value < 2**31 else 0
