"""Pascal VOC's boxes: an XML file for each image."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from convattn.data.objects.cache import index_path
from convattn.data.objects.index import Box, EntryError, IndexBuilder, ObjectIndex
from convattn.data.objects.reader import ObjectPart, ObjectReader
from convattn.data.objects.voc_layout import (
    ANNOTATIONS,
    IMAGES,
    VocFiles,
    VocPart,
    find_files,
    find_parts,
)
from convattn.data.problems import Problem
from convattn.data.reading import Reading
from convattn.data.scan import image_sizes
from convattn.data.source import DataSource
from convattn.names import counted, nfc, shown

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LISTS = "ImageSets/Main"


def open_voc_boxes(
    path: str | Path,
    reading: Reading,
    *,
    train_split: str = "train",
    val_split: str = "validation",
) -> DataSource:
    """Open the boxes of a data set in the format of Pascal VOC.

    It has ``Annotations/*.xml``, ``JPEGImages/`` and, if it has parts, ``ImageSets/Main/*.txt``;
    or XML files beside the images or in a folder beside theirs, with parts in folders such as
    ``train`` and ``valid``. The images of val.txt are held out; where there is none those of
    test.txt, else a part of the images. As Pascal VOC counts pixels from 1 and up to and including
    the last one, the box xmin, ymin, xmax, ymax reaches from xmin - 1 to xmax. Objects called
    difficult are crowds: a detector may find them or not.

    Args:
        path: the folder, or one that holds VOC2012 or VOCdevkit/VOC2012.
        reading: how it is read.
        train_split: name of the list to learn from.
        val_split: name of the list that is held out.

    Raises:
        FileNotFoundError: there is no such folder, or it has no annotations.
        ValueError: there is no such list or folder of a part.
        UnusableDataError: too many images or objects have problems.
    """
    files = find_files(Path(path).expanduser())
    root, everything = files.root, list(files.annotations)
    first, second, notes = find_parts(root, _LISTS, everything, train_split, val_split)
    notes += _without_annotations(files) if not first.name else []
    train = _part(files, first)
    val = None if second is None else _part(files, second)
    names = {name for part in (train, val) if part for name in part.index.facts.class_names}
    reader = ObjectReader(f"voc:{path}", str(root), reading, notes)
    return reader.read(train, val, default_names=sorted(names))


def _without_annotations(files: VocFiles) -> list[str]:
    """Return a sentence on the images without an XML file; no sentence if there are none."""
    images = [image for name, image in files.images.items() if name not in files.annotations]
    if not images:
        return []
    have = "has" if len(images) == 1 else "have"
    are = "is" if len(images) == 1 else "are"
    return [
        f"{counted(len(images), 'image')} {have} no XML file and {are} not used, such as "
        f"{shown(images[0])}"
    ]


def _part(files: VocFiles, part: VocPart) -> ObjectPart:
    root = files.root
    xml = [files.annotations.get(name, f"{ANNOTATIONS}/{name}.xml") for name in part.images]
    folders = sorted({os.path.dirname(image) for image in files.images.values()})
    cached = index_path(f"voc {part.name}", [root, *(root / name for name in (*folders, *xml))])
    index = ObjectIndex.load(cached)
    if index is None:
        parser = _Parser(root, files.images)
        index = parser.parse(part.images, xml)
        index = index.stored(cached) if parser.is_complete else index
    return ObjectPart(index, str(root), noun="object")


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
    pictures: Mapping[str, str]
    built: IndexBuilder = field(default_factory=IndexBuilder)
    found: list[_Object] = field(default_factory=list)
    is_complete: bool = True  # whether nothing was read from the images

    def parse(self, names: Sequence[str], files: Sequence[str]) -> ObjectIndex:
        """Return the index of the images with these names and annotation files."""
        for name, file in zip(names, files, strict=True):
            try:
                tree = _read_xml(self.root / file)
            except FileNotFoundError:
                self._image_problem(file, "the annotation file is missing")
            except EntryError as error:
                self._image_problem(file, str(error))
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
        picture = self._picture(name, file, (tree.findtext("filename") or "").strip())
        size = _side(tree, "width"), _side(tree, "height")
        if min(size) <= 0:
            size = image_sizes([str(self.root / picture)])[0]
            self.is_complete = False
        row = self.built.add_image(picture, size, len(self.built))
        for number, entry in enumerate(tree.iter("object"), 1):
            self.built.entries += 1
            try:
                self.found.append(self._object(entry, file, row, number, size))
            except EntryError as error:
                self.built.problems.append(Problem(file, f"object {number}", str(error)))

    def _picture(self, name: str, file: str, given: str) -> str:
        """Return the image with the name of an annotation file, else the one named in the file."""
        found = self.pictures.get(name, "")
        folder = os.path.dirname(found or file)
        folder = IMAGES if not found and folder == ANNOTATIONS else folder
        named = os.path.join(folder, given)
        is_other = not found or os.path.splitext(given)[0] == PurePosixPath(name).name
        if given and is_other and (self.root / named).is_file():
            return named
        return found or f"{folder}/{PurePosixPath(name).name}.jpg".lstrip("/")

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


def _read_xml(path: Path) -> ElementTree.Element:
    """Return the root of an annotation file, the names of its elements without namespaces.

    Raises:
        EntryError: the file is XML, but no annotation of one image.
    """
    content = path.read_bytes()
    if b"<!ENTITY" in content:  # a few lines of entities can expand to gigabytes
        raise EntryError("the file defines entities: remove <!DOCTYPE ...> from it")
    tree = ElementTree.fromstring(content)
    for element in tree.iter() if b"xmlns" in content else ():
        element.tag = element.tag.rpartition("}")[2]
    if tree.tag.lower() != "annotation":
        raise EntryError(
            f"the file is no annotation in VOC's format: its root is <{shown(tree.tag)[:40]}> "
            "instead of <annotation>"
        )
    return tree


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
