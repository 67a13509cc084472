"""The format of Ultralytics YOLO: a text file with boxes or polygons for each image."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convattn.data.objects.cache import index_path
from convattn.data.objects.index import EntryError, IndexBuilder, ObjectIndex, clean_polygons
from convattn.data.objects.reader import ObjectPart, ObjectReader
from convattn.data.objects.yolo_layout import YoloFile, label_file, read_yaml
from convattn.data.problems import Problem, UnusableDataError
from convattn.data.reading import Reading
from convattn.data.scan import image_sizes
from convattn.data.source import DataSource, relative_name
from convattn.names import counted, shown

_IN_PIXELS = 2.0  # a larger coordinate is in pixels, not a share of the image
_ROUNDING = 0.01  # share of the image by which a box may reach beyond it
_FEW = 5  # so many boxes may leave their images in any data set
_LEAVING = 1 / 3  # with a larger share of such boxes, the four numbers may have another meaning
_FITTING = 0.95  # share of the boxes that lie in their images with the right meaning


def open_yolo(
    path: str | Path,
    reading: Reading,
    *,
    masks: bool = False,
    train_split: str = "train",
    val_split: str = "validation",
) -> DataSource:
    """Open a data set in the format of Ultralytics YOLO.

    Its YAML file has ``path``, ``train``, ``val`` and ``names``. The labels of
    ``images/train/1.jpg`` are in ``labels/train/1.txt``: a line for each object, with the number of
    its class and the box (centre, width, height) or the polygon (x, y, x, y, ...), as shares of the
    width and height of the image. Of labels of poses (``kpt_shape``) the boxes are read. An image
    without such a file has no objects.

    Args:
        path: the YAML file, or the folder that holds it.
        reading: how it is read.
        masks: whether targets have masks, which polygons give.
        train_split: key of the part to learn from.
        val_split: key of the part held out.

    Raises:
        FileNotFoundError: there is no such file, or no folder that it names.
        UnusableDataError: the YAML file is not usable, or too many images or objects have problems.
    """
    file = read_yaml(Path(path).expanduser())
    names = [name for name in file.choose(train_split, val_split) if name]
    notes = []
    if names[1:] == ["test"] and val_split != "test":
        notes.append(
            "test is held out in place of a validation part: the best epoch is chosen on it"
        )
    images = [file.images(name) for name in names]
    root = _root(file, images)
    parts = [_part(file, name, found, root) for name, found in zip(names, images, strict=True)]
    return ObjectReader(f"yolo:{path}", root, reading, notes, masks=masks).read(*parts)


def _root(file: YoloFile, images: Sequence[Sequence[str]]) -> str:
    """Return the folder that holds all images: that of the YAML file, or one above the images."""
    beside = str(file.path.parent.absolute())
    paths = [path for found in images for path in found]
    if all(path.startswith(os.path.join(beside, "")) for path in paths):
        return beside
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # several drives
        return beside


def _part(file: YoloFile, name: str, images: Sequence[str], root: str) -> ObjectPart:
    title = file.values[name] if isinstance(file.values[name], str) else name
    if not images:
        raise UnusableDataError(f"{shown(file.path)}: {name}: {shown(title)} has no images")
    labels = [label_file(image) for image in images]
    cached = index_path(f"yolo {name} {root}", [file.path, *images, *labels])
    index = ObjectIndex.load(cached)
    if index is None:
        index = _Parser(file, root).parse(images, labels, title).stored(cached)

    def label_name(image: str) -> str:
        return relative_name(label_file(os.path.join(root, image)), root)

    return ObjectPart(index, root, noun="line", label_file=label_name)


@dataclass
class _Parser:
    """Reads the labels of the images of a part."""

    file: YoloFile
    root: str
    built: IndexBuilder = field(default_factory=IndexBuilder)
    boxes: array[float] = field(default_factory=lambda: array("d"))

    def parse(self, images: Sequence[str], labels: Sequence[str], title: str) -> ObjectIndex:
        """Return the index of the images."""
        without = 0
        sizes = image_sizes(images)
        for image, label, size in zip(images, labels, sizes, strict=True):
            name = relative_name(label, self.root)
            try:
                with open(label, "rb") as opened:
                    text = opened.read().decode("utf-8-sig")
            except FileNotFoundError:
                text = ""
                without += 1
            except UnicodeDecodeError as error:
                self._image_problem(name, f"the file is not text: {error.reason}")
                continue
            except OSError as error:
                self._image_problem(name, f"the file cannot be read: {error.strerror}")
                continue
            row = self.built.add_image(relative_name(image, self.root), size, len(self.built))
            self._read(row, name, text, size)
        if without == len(images):
            raise ValueError(
                f"{shown(self.file.path)}: no file of labels for any of "
                f"{counted(len(images), 'image')} in {shown(title)}, such as {shown(labels[0])}"
            )
        self._check_centres(title)
        if without:
            has = "has" if without == 1 else "have"
            self.built.notes.append(
                f"{without:,} of {counted(len(images), 'image')} in {shown(title)} {has} no file "
                "of labels: no objects"
            )
        return self.built.build(self.file.class_names)

    @property
    def has_points(self) -> bool:
        """Whether each box is followed by the points of a pose."""
        return bool(self.file.values.get("kpt_shape"))

    def _check_centres(self, title: str) -> None:
        """Raise an error if the boxes have corners in place of centres."""
        x, y, width, height = np.array(self.boxes).reshape(-1, 4).T
        total = len(x)
        low, high = (
            np.minimum(x - width / 2, y - height / 2),
            np.maximum(x + width / 2, y + height / 2),
        )
        leaving = np.count_nonzero((low < -_ROUNDING) | (high > 1 + _ROUNDING))
        if leaving <= max(_FEW, total * _LEAVING):
            return
        right, bottom = x + width, y + height
        others = {
            "x1, y1, x2, y2": (x < width)
            & (y < height)
            & (np.maximum(width, height) <= 1 + _ROUNDING),
            "x1, y1, width, height": (np.maximum(right, bottom) <= 1 + _ROUNDING),
        }
        for meant, fits in others.items():
            if np.count_nonzero(fits) >= total * _FITTING:
                raise UnusableDataError(
                    f"{shown(self.file.path)}: {leaving:,} of {total:,} boxes in "
                    f"{shown(title)} reach beyond their image, and nearly all fit as {meant}: "
                    "write the centre, the width and the height (x, y, width, height) of each box"
                )

    def _image_problem(self, file: str, reason: str) -> None:
        self.built.image_problems.append(Problem(file, "", reason))

    def _read(self, row: int, file: str, text: str, size: tuple[int, int]) -> None:
        seen: set[tuple[str, ...]] = set()
        if min(size) <= 0:  # the image is broken, which the reader says
            return
        for number, line in enumerate(text.splitlines(), 1):
            words = tuple(line.split())
            if not words:
                continue
            self.built.entries += 1
            try:
                if words in seen:
                    raise EntryError("duplicate entry: an earlier line is the same")
                seen.add(words)
                self._object(row, file, number, words, size)
            except EntryError as error:
                self.built.problems.append(Problem(file, f"line {number}", str(error)))

    def _object(
        self, row: int, file: str, number: int, words: tuple[str, ...], size: tuple[int, int]
    ) -> None:
        label = self._label(words[0])
        values = [_number(word) for word in words[1:]]
        if len(values) < 4:
            raise EntryError(
                f"a line is neither a box (5 numbers) nor a polygon (7 or more): {len(words)}"
            )
        if self.has_points:
            values = values[:4]  # the box, before the points of a pose
        if len(values) == 5:
            raise EntryError(
                "a line has a box and one more number: 6 numbers; delete the last one if it is the "
                "score of a prediction"
            )
        if len(values) % 2:
            raise EntryError(f"a polygon has an odd number of coordinates: {len(values)}")
        if any(math.isfinite(value) and abs(value) > _IN_PIXELS for value in values):
            raise EntryError("coordinates are in pixels: they must be shares of the image, 0 to 1")
        x = [value * size[0] for value in values[::2]]
        y = [value * size[1] for value in values[1::2]]
        polygons: list[Sequence[float]] = []
        problems: list[str] = []
        cut: list[str] = []
        if len(values) == 4:
            self.boxes.extend(values)
            box = (x[0] - x[1] / 2, y[0] - y[1] / 2, x[0] + x[1] / 2, y[0] + y[1] / 2)
        else:
            points = [value for pair in zip(x, y, strict=True) for value in pair]
            polygons = clean_polygons([points], size, problems.append, cut.append)
            if problems:
                raise EntryError(problems[0])
            x, y = list(polygons[0][::2]), list(polygons[0][1::2])
            box = (min(x), min(y), max(x), max(y))
        box = self.built.clean_box(box, size, cut.append)
        self.built.cut += [Problem(file, f"line {number}", why) for why in cut]
        self.built.add_object(row, label, box, entry=number, mask=polygons)

    def _label(self, word: str) -> int:
        try:
            value = float(word)  # some programs write 0.0
        except ValueError:
            value = math.nan
        if not value.is_integer():
            raise EntryError(f"the class is not a whole number: '{shown(word)}'")
        label = int(value)
        if not 0 <= label < len(self.file.class_names):
            raise EntryError(
                f"the class is beyond the list: {label}, and names has "
                f"{len(self.file.class_names)} classes"
            )
        return label


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise EntryError(f"a coordinate is not a number: '{shown(word)}'") from None
