"""Images and their objects as columns of numbers, which need little memory in every process."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convattn.data.objects.cache import read_index, write_index
from convattn.data.problems import Problem

NO_MASK, POLYGONS, RUN_LENGTHS, BROKEN_MASK = range(4)
ROUNDING = 1.0  # a box that reaches so many pixels beyond its image is clipped
_LEAST_INSIDE = 0.5  # share of an area in the image, below which a box or polygon is left out
_SMALLEST = 1e-3  # pixels; a shorter side can have no length in float32
_TYPES = {
    "name_ends": "q", "width": "i", "height": "i", "image_id": "q",
    "image": "i", "label": "i", "crowd": "B", "area": "f", "entry": "q", "mask_kind": "B",
    "mask_first": "q", "mask_end": "q", "boxes": "f", "part_ends": "q", "points": "d",
}  # fmt: skip
_OF_OBJECTS = (
    "image", "label", "crowd", "area", "entry", "mask_kind", "mask_first", "mask_end",
)  # fmt: skip

Box = tuple[float, float, float, float]
# The parts of a polygon mask, or the compressed run lengths of a mask of the image's size.
MaskData = Sequence[Sequence[float]] | bytes


class EntryError(ValueError):
    """An entry of an annotation file cannot be used; the message is the reason of a `Problem`."""


@dataclass(frozen=True)
class IndexFacts:
    """What an index has beside its columns.

    Args:
        class_names: the names of the classes, in the order of the labels.
        problems: one for each entry that was left out.
        mask_problems: problems of masks of objects whose box can be used.
        image_problems: problems of images that were left out.
        cut: one for each box or polygon that leaves its image by more than `ROUNDING`, and of which
            the part in the image is kept.
        clipped: number of boxes that were clipped by at most `ROUNDING`.
        entries: number of objects in the files, with those that were left out.
        notes: sentences on the files as a whole.
        category_ids: the ids of the classes in the file, () if classes have no ids.
    """

    class_names: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    mask_problems: tuple[Problem, ...] = ()
    image_problems: tuple[Problem, ...] = ()
    cut: tuple[Problem, ...] = ()
    clipped: int = 0
    entries: int = 0
    notes: tuple[str, ...] = ()
    category_ids: tuple[int | str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON can represent."""
        found: dict[str, Any] = dict(vars(self))
        for name in _PROBLEMS:
            found[name] = [[p.file, p.entry, p.reason] for p in found[name]]
        return found

    @staticmethod
    def from_dict(values: dict[str, Any]) -> IndexFacts:
        """Read what `to_dict` returned."""
        found: dict[str, Any]
        found = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        for name in _PROBLEMS:
            found[name] = tuple(itertools.starmap(Problem, values[name]))
        return IndexFacts(**found)


_PROBLEMS = ("problems", "mask_problems", "image_problems", "cut")


class ObjectIndex:
    """The images and objects of one or several annotation files.

    Args:
        facts: classes and problems.
        columns: the columns that an `IndexBuilder` made.
        path: the file that holds them, "" if they are in memory only.
    """

    def __init__(self, facts: IndexFacts, columns: dict[str, Any], path: str | Path = "") -> None:
        self.facts = facts
        self._columns = columns
        self._path = str(path)

    @staticmethod
    def load(path: Path) -> ObjectIndex | None:
        """Return the index of a file of the cache, None if there is none."""
        found = read_index(path)
        if found is None:
            return None
        try:
            return ObjectIndex(IndexFacts.from_dict(found[0]), found[1], path)
        except (TypeError, KeyError, ValueError):  # it was written by another version
            return None

    def stored(self, path: Path) -> ObjectIndex:
        """Return this index, memory-mapped from the file of the cache if it can be written."""
        written = write_index(path, self.facts.to_dict(), self._columns)
        return (self.load(path) or self) if written else self

    def __reduce__(self) -> Any:
        # A process that is started anew maps the file; pickling would copy all columns.
        if self._path:
            return _reload, (self._path,)
        return ObjectIndex, (self.facts, self._columns)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._columns["width"])

    @property
    def num_objects(self) -> int:
        """The number of objects that can be used."""
        return len(self._columns["label"])

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return bool((self._columns["mask_kind"] != NO_MASK).any())

    def column(self, name: str) -> np.ndarray:
        """Return a column of images or of objects."""
        found: np.ndarray = self._columns[name]
        return found

    def name(self, row: int) -> str:
        """Return the file name of an image."""
        ends = self._columns["name_ends"]
        first = int(ends[row - 1]) if row else 0
        text = self._columns["names"][first : int(ends[row])].tobytes()
        return text.decode("utf-8", "surrogateescape")

    def names(self) -> list[str]:
        """Return the file names of all images."""
        text, ends = self._columns["names"].tobytes(), self._columns["name_ends"].tolist()
        pairs = itertools.pairwise([0, *ends])
        return [text[first:end].decode("utf-8", "surrogateescape") for first, end in pairs]

    def size(self, row: int) -> tuple[int, int]:
        """Return width and height of an image, (0, 0) if the files do not say them."""
        return int(self._columns["width"][row]), int(self._columns["height"][row])

    def objects(self, row: int) -> slice:
        """Return the place of an image's objects in the columns."""
        first = self._columns["first"]
        return slice(int(first[row]), int(first[row + 1]))

    def masks(self, numbers: Sequence[int], size: tuple[int, int]) -> np.ndarray:
        """Return the masks (N, H, W) of objects, of zeros and ones.

        Args:
            numbers: of the objects.
            size: width and height of their image.
        """
        from pycocotools import mask as coco

        width, height = size
        if not numbers:
            return np.zeros((0, height, width), np.uint8)
        decoded = coco.decode([self._run_lengths(number, width, height) for number in numbers])
        return np.ascontiguousarray(decoded.transpose(2, 0, 1))

    def _run_lengths(self, number: int, width: int, height: int) -> dict[str, Any]:
        from pycocotools import mask as coco

        first, end = (int(self._columns[f"mask_{name}"][number]) for name in ("first", "end"))
        if self._columns["mask_kind"][number] == RUN_LENGTHS:
            return {"size": [height, width], "counts": self._columns["runs"][first:end].tobytes()}
        runs: dict[str, Any] = coco.merge(
            coco.frPyObjects(self._polygons(first, end), height, width)
        )
        return runs

    def _polygons(self, first: int, end: int) -> list[np.ndarray]:
        ends = self._columns["part_ends"]
        begins = [int(ends[first - 1]) if first else 0, *map(int, ends[first : end - 1])]
        return [
            self._columns["points"][begin : int(stop)]
            for begin, stop in zip(begins, ends[first:end], strict=True)
        ]


def _reload(path: str) -> ObjectIndex:
    found = ObjectIndex.load(Path(path))
    if found is None:
        raise FileNotFoundError(
            f"the index {path} was removed while it was in use; open the data set again"
        )
    return found


@dataclass
class IndexBuilder:
    """Collects images and objects, and the problems of those that are left out."""

    problems: list[Problem] = field(default_factory=list)
    mask_problems: list[Problem] = field(default_factory=list)
    image_problems: list[Problem] = field(default_factory=list)
    cut: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clipped: int = 0
    entries: int = 0

    def __post_init__(self) -> None:
        self._columns: dict[str, array[Any]] = {name: array(t) for name, t in _TYPES.items()}
        self._names, self._runs = bytearray(), bytearray()
        # Bound methods: an annotation file may have a million objects.
        self._add = {name: column.append for name, column in self._columns.items()}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._columns["width"])

    def add_image(self, name: str, size: tuple[int, int], image_id: int) -> int:
        """Add an image and return its row; size is width and height, (0, 0) if not known."""
        self._names += name.encode("utf-8", "surrogateescape")
        add = self._add
        add["name_ends"](len(self._names))
        add["width"](size[0])
        add["height"](size[1])
        add["image_id"](image_id)
        return len(self) - 1

    def set_size(self, row: int, size: tuple[int, int]) -> None:
        """Set width and height of an image."""
        self._columns["width"][row], self._columns["height"][row] = size

    def add_object(
        self,
        row: int,
        label: int,
        box: Box,
        *,
        entry: int,
        crowd: bool = False,
        area: float = math.nan,
        mask: MaskData | None = None,
        has_broken_mask: bool = False,
    ) -> None:
        """Add an object of an image.

        Args:
            row: of the image.
            label: the number of its class.
            box: x1, y1, x2, y2 in pixels.
            entry: the number by which a message names it.
            crowd: whether it stands for many objects.
            area: in pixels; NaN takes that of the mask or of the box.
            mask: its mask.
            has_broken_mask: whether it has a mask that cannot be used.
        """
        add = self._add
        add["image"](row)
        add["label"](label)
        add["crowd"](crowd)
        add["area"](area)
        add["entry"](entry)
        self._columns["boxes"].extend(box)
        ends = self._columns["part_ends"]
        if isinstance(mask, bytes):
            kind, first = RUN_LENGTHS, len(self._runs)
            self._runs += mask
            end = len(self._runs)
        elif mask:
            kind, first, points = POLYGONS, len(ends), self._columns["points"]
            for part in mask:
                points.extend(part)
                ends.append(len(points))
            end = len(ends)
        else:
            kind, first, end = (BROKEN_MASK if has_broken_mask else NO_MASK), 0, 0
        add["mask_kind"](kind)
        add["mask_first"](first)
        add["mask_end"](end)

    def labels(self) -> set[int]:
        """Return the numbers of the classes that have objects."""
        return set(self._columns["label"])

    def build(
        self, class_names: Sequence[str], category_ids: Sequence[int | str] = ()
    ) -> ObjectIndex:
        """Return the index, its objects in the order of the images."""
        found = {name: np.asarray(column) for name, column in self._columns.items()}
        found["boxes"] = found["boxes"].reshape(-1, 4)
        order = np.argsort(found["image"], kind="stable")
        for name in (*_OF_OBJECTS, "boxes"):
            found[name] = found[name][order]
        counts = np.bincount(found.pop("image"), minlength=len(found["width"]))
        found["first"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        found["boxes"] = found["boxes"].reshape(-1)
        found["names"] = np.frombuffer(bytes(self._names), np.uint8)
        found["runs"] = np.frombuffer(bytes(self._runs), np.uint8)
        facts = IndexFacts(
            tuple(class_names),
            tuple(self.problems),
            tuple(self.mask_problems),
            tuple(self.image_problems),
            tuple(self.cut),
            self.clipped,
            self.entries,
            tuple(self.notes),
            tuple(category_ids),
        )
        return ObjectIndex(facts, found)

    def clean_box(self, box: Box, size: tuple[int, int], report: Callable[[str], None]) -> Box:
        """Return the part of a box that lies in its image.

        Args:
            box: x1, y1, x2, y2 in pixels.
            size: width and height of the image.
            report: is called with the reason if the box reaches beyond the image by more than
                `ROUNDING` and is cut.

        Raises:
            EntryError: the box has no area, more than half of it lies beyond the image, or it has
                NaN or infinity.
        """
        x1, y1, x2, y2 = box
        width, height = size
        if not (x2 - x1 >= _SMALLEST and y2 - y1 >= _SMALLEST):
            raise EntryError(_why_empty(box))
        if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
            return box
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if not all(map(math.isfinite, box)):
            raise EntryError(f"{NOT_FINITE}: {_sides(box)}")
        sides = clipped[2] - clipped[0], clipped[3] - clipped[1]
        details = f"{_sides(box)}, in an image of {width} x {height} pixels"
        is_cut = max(-x1, -y1, x2 - width, y2 - height) > ROUNDING
        share = sides[0] / (x2 - x1) * (sides[1] / (y2 - y1))
        if min(sides) < _SMALLEST or (is_cut and share < _LEAST_INSIDE):
            raise EntryError(f"most of the box lies beyond the image: {details}")
        if is_cut:
            report(f"the box is cut at the edge of the image: {details}")
        self.clipped += not is_cut
        return clipped


NOT_FINITE = "a number is NaN or infinite"


def _why_empty(box: Box) -> str:
    if not all(map(math.isfinite, box)):
        return f"{NOT_FINITE}: {_sides(box)}"
    return f"the box has no area: {_sides(box)}"


def _sides(box: Iterable[float]) -> str:
    x1, y1, x2, y2 = box
    return f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"


def clean_polygons(
    parts: Sequence[Any],
    size: tuple[int, int],
    report: Callable[[str], None],
    report_cut: Callable[[str], None],
) -> list[Sequence[float]]:
    """Return the parts of a polygon mask that can be used, as far as they lie in the image.

    Args:
        parts: lists or arrays of x, y, x, y, ... in pixels.
        size: width and height of the image.
        report: is called with the reason why a part cannot be used.
        report_cut: is called with the reason why a part is cut.
    """
    kept: list[Sequence[float]] = []
    for part in parts:
        if why := _why_no_polygon(part):
            report(why)
            continue
        x, y = part[::2], part[1::2]
        far = max(-min(x), -min(y), max(x) - size[0], max(y) - size[1])
        if far <= ROUNDING:
            kept.append(part)
            continue
        found = _cut(part, size)
        if len(found) < 6 or not _area(found) >= _LEAST_INSIDE * _area(part):  # with NaN
            report(f"most of a polygon lies beyond the image: it reaches {far:g} pixels beyond")
            continue
        report_cut(f"a polygon is cut at the edge of the image: it reaches {far:g} pixels beyond")
        kept.append(found)
    return kept


def _cut(part: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Return the part of a polygon in an image, [] if there is none."""
    points = list(zip(part[::2], part[1::2], strict=True))
    for axis, sign, edge in ((0, -1, 0), (0, 1, size[0]), (1, -1, 0), (1, 1, size[1])):
        kept: list[tuple[float, float]] = []
        for start, end in zip(points[-1:] + points[:-1], points, strict=True):
            beyond = [sign * (point[axis] - edge) for point in (start, end)]
            if (beyond[0] > 0) != (beyond[1] > 0):
                way = beyond[0] / (beyond[0] - beyond[1])
                other = start[1 - axis] + way * (end[1 - axis] - start[1 - axis])
                kept.append((other, edge) if axis else (edge, other))
            if beyond[1] <= 0:
                kept.append(end)
        points = kept
    return [float(side) for point in points for side in point]


def _area(part: Sequence[float]) -> float:
    x, y = part[::2], part[1::2]
    pairs = zip(x, [*y[1:], y[0]], [*x[1:], x[0]], y, strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for x1, y2, x2, y1 in pairs)) / 2


def _why_no_polygon(part: Any) -> str:
    """Return why a value is no list of the coordinates of a polygon, "" if it is one."""
    if not isinstance(part, list | array):
        return f"a polygon is not a list of coordinates: {str(part)[:40]}"
    if len(part) % 2:
        return f"a polygon has an odd number of coordinates: {len(part)}"
    if len(part) < 6:
        return f"a polygon has fewer than three points: {len(part) // 2}"
    try:
        if not math.isfinite(sum(part)):
            return f"{NOT_FINITE}: in a polygon"
    except (TypeError, OverflowError):
        return "a polygon has a coordinate that is not a number"
    return ""
