"""Makes data sets of objects from the indexes of their annotation files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convattn.data.folders.classes import ClassNumbers, UnknownClassesError
from convattn.data.images import BrokenImageError, ImageInfo, other_size, upright_size
from convattn.data.objects.images import ObjectImages
from convattn.data.objects.index import NO_MASK, ObjectIndex
from convattn.data.problems import COMMAND, NoMasksError, Problem, UnusableDataError, check_entries
from convattn.data.reading import BEFORE, HEADERS_OF, SourceReader, image_reason
from convattn.data.scan import DECODE_AT_MOST, find_broken
from convattn.data.source import BrokenFile, DataSource, relative_name
from convattn.data.survey import spread
from convattn.names import counted, did_you_mean, listed, shown


@dataclass(frozen=True)
class ObjectPart:
    """A part of a data set, such as the training part.

    Args:
        index: its images and objects.
        folder: the folder that the names of the images start from.
        file: the annotation file, relative to the root of the data set; "" if each image has one.
        noun: what an entry of an object is called.
        label_file: returns the annotation file for the name of an image, where each image has one.
    """

    index: ObjectIndex
    folder: str
    file: str = ""
    noun: str = "annotation"
    label_file: Callable[[str], str] = str

    @property
    def title(self) -> str:
        """The file or the folder, for messages."""
        return self.file or self.folder


@dataclass
class ObjectReader(SourceReader):
    """Makes a `DataSource` of the parts of a data set.

    Args:
        masks: whether targets have masks.
    """

    masks: bool = False

    def read(
        self,
        train: ObjectPart,
        val: ObjectPart | None = None,
        *,
        default_names: Sequence[str] = (),
    ) -> DataSource:
        """Return the data set.

        Args:
            train: the part to learn from.
            val: the part held out; None holds out some images of ``train``.
            default_names: the classes where none are given; by default those of ``train``.

        Raises:
            UnusableDataError: too many images or objects have problems, or no image is left.
            UnknownClassesError: objects are of a class that is not among the given ones.
        """
        parts = [train] if val is None else [train, val]
        self._check_masks(parts)
        names = tuple(self.reading.class_names or default_names or train.index.facts.class_names)
        numbers = [self._numbers(part, names) for part in parts]
        total = sum(len(part.index) for part in parts)
        rows = [self._readable(part, total) for part in parts]
        self._check_objects(parts)
        if val is not None:
            self._note_both(parts, rows)
        else:
            rows = self.split(rows[0], lambda row: self._relative(train, train.index.name(row)))
            parts, numbers = [train, train], numbers * 2
        sets = [
            ObjectImages(part.index, chosen, part.folder, number, masks=self.masks)
            for part, chosen, number in zip(parts, rows, numbers, strict=True)
        ]
        return self.source(
            [part.title for part in parts],
            sets,
            names,
            split_here=val is None,
            category_ids=_category_ids(parts[-1], numbers[-1], len(names)),
        )

    def _check_masks(self, parts: Sequence[ObjectPart]) -> None:
        for part in parts:
            if self.masks and part.index.num_objects and not part.index.has_masks:
                raise NoMasksError(
                    f"{shown(part.title)} of {shown(self.name)} has no masks of objects, only "
                    "boxes: choose a method that learns boxes, or give annotations with polygons"
                )

    def _numbers(self, part: ObjectPart, names: Sequence[str]) -> np.ndarray:
        """Return the number of each class of a part; -1 for unknown classes without objects."""
        own = part.index.facts.class_names
        found = ClassNumbers(names).match(own)
        used = np.unique(part.index.column("label")).tolist()
        unknown = [own[label] for label in used if found[own[label]] is None]
        if unknown:
            given = self.reading.class_names is not None
            where = "the model's classes" if given else "the training part"
            raise UnknownClassesError(
                f"{shown(part.title)} has classes that are not in {where}: {listed(unknown)}"
                f"{did_you_mean(unknown[0], names)} Known are {listed(list(names))}"
            )
        numbers = [found[name] for name in own]
        return np.array([-1 if n is None else n for n in numbers], dtype=np.int64)

    def _readable(self, part: ObjectPart, total: int) -> np.ndarray:
        """Return the rows of the images that can be read; the others are added to the problems."""
        names = part.index.names()
        left, known = self.unread(len(names), lambda row: self._relative(part, names[row]))
        broken = {row: BrokenFile(self._path(part, names[row]), BEFORE) for row in known}
        missing = [row for row in left if not self._exists(part, names[row])]
        why = "the image is missing" + (f": {shown(part.title)} names it" if part.file else "")
        broken |= {row: BrokenFile(self._path(part, names[row]), why) for row in missing}
        gone = set(missing)
        left = [row for row in left if row not in gone]
        if missing and not left:
            self._raise_all_missing(part, [names[row] for row in missing], why)
        broken |= self._unreadable(part, left, names, large=total > DECODE_AT_MOST)
        found = [broken[row] for row in sorted(broken)]
        self.broken += found
        self._add_images(part, found, len(names))
        return np.array([row for row in left if row not in broken], dtype=np.int64)

    def _unreadable(
        self, part: ObjectPart, rows: Sequence[int], names: Sequence[str], *, large: bool
    ) -> dict[int, BrokenFile]:
        rows = spread(rows, HEADERS_OF) if large else rows
        paths = [self._path(part, names[row]) for row in rows]

        def misfit(index: int, info: ImageInfo) -> str:
            size = part.index.size(rows[index])
            if size in (info.size, _upright(paths[index], info.size, size)):
                return ""
            return other_size(info.size, size)

        decode = None if self.reading.check and not large else False
        found = find_broken(paths, self.survey, decode=decode, misfit=misfit)
        files = {file.path: file for file in found}
        return {row: files[p] for row, p in zip(rows, paths, strict=True) if p in files}

    def _add_images(self, part: ObjectPart, broken: Sequence[BrokenFile], total: int) -> None:
        """Add the problems of images, and raise an error if there are too many."""
        own = [self._placed(part, p) for p in part.index.facts.image_problems]
        found = [
            Problem(relative_name(file.path, self.root), "", image_reason(file.reason))
            for file in broken
            if file.reason is not BEFORE
        ]
        self.problems += [*own, *found]
        total += len(own)
        self.notes += check_entries(
            [*own, *found], total, self.reading.max_broken, self.name, "image"
        )

    def _check_objects(self, parts: Sequence[ObjectPart]) -> None:
        """Add the problems of objects, and raise an error if there are too many."""
        found = [problem for part in parts for problem in self._object_problems(part)]
        self.problems += found
        entries = sum(part.index.facts.entries for part in parts)
        self.notes += check_entries(found, entries, self.reading.max_broken, self.name)
        self._add_cut(parts)
        if clipped := sum(part.index.facts.clipped for part in parts):
            reach = "box reaches" if clipped == 1 else "boxes reach"
            self.notes.append(
                f"{clipped:,} {reach} beyond the image by at most a pixel: clipped at its border"
            )
        self.notes += [note for part in parts for note in part.index.facts.notes]

    def _add_cut(self, parts: Sequence[ObjectPart]) -> None:
        """Add the objects that are cut at the edge of the image; they are used."""
        cut = [self._placed(part, problem) for part in parts for problem in part.index.facts.cut]
        self.problems += cut
        if places := list(dict.fromkeys(problem.place for problem in cut)):
            reach, are = ("reaches", "is") if len(places) == 1 else ("reach", "are")
            self.notes.append(
                f"{counted(len(places), 'object')} {reach} beyond the image and {are} cut at its "
                f"edge, such as {shown(places[0])}; {COMMAND} {shown(self.name)}` lists all of them"
            )

    def _object_problems(self, part: ObjectPart) -> Iterator[Problem]:
        facts = part.index.facts
        yield from (self._placed(part, problem) for problem in facts.problems)
        if not self.masks:
            return
        yield from (self._placed(part, problem) for problem in facts.mask_problems)
        column = part.index.column
        for number in np.flatnonzero(column("mask_kind") == NO_MASK).tolist():
            row = int(np.searchsorted(column("first"), number, side="right")) - 1
            file = part.file or part.label_file(part.index.name(row))
            entry = f"{part.noun} {column('entry')[number]}"
            yield Problem(file, entry, "the object has no mask")

    def _placed(self, part: ObjectPart, problem: Problem) -> Problem:
        return problem if problem.file else replace(problem, file=part.file)

    def _note_both(self, parts: Sequence[ObjectPart], rows: Sequence[np.ndarray]) -> None:
        """Add a sentence on images that are both in the training part and in the held-out part."""
        train, val = (
            {os.path.join(part.folder, part.index.name(row)) for row in chosen.tolist()}
            for part, chosen in zip(parts, rows, strict=True)
        )
        if both := sorted(train & val):
            are = "is an image" if len(both) == 1 else "are images"
            names = [relative_name(path, self.root) for path in both]
            self.notes.append(
                f"{len(both):,} of {counted(len(val), 'held-out image')} {are} to learn from too: "
                f"{listed(names, 3)}"
            )

    def _raise_all_missing(self, part: ObjectPart, missing: Sequence[str], why: str) -> None:
        missing = [self._relative(part, name) for name in missing]
        self.problems += [Problem(name, "", why) for name in missing]
        raise UnusableDataError(
            f"none of the {counted(len(missing), 'image')} of {shown(part.title)} exists: "
            f"{listed(missing, 3)} in {shown(self.root)}; "
            + (
                "give the folder of the images with images=FOLDER"
                if part.file
                else "give the folder that holds both the images and their annotations"
            ),
            self.problems,
        )

    def _relative(self, part: ObjectPart, name: str) -> str:
        return relative_name(self._path(part, name), self.root)

    @staticmethod
    def _path(part: ObjectPart, name: str) -> str:
        return os.path.join(part.folder, name)

    def _exists(self, part: ObjectPart, name: str) -> bool:
        if name in self._listing(part.folder):
            return True
        path = self._path(part, name)
        folder, file = os.path.split(path)
        return file in self._listing(folder) or os.path.isfile(path)

    def _listing(self, folder: str) -> set[str]:
        """Return the names of the files in a folder; it is faster than a check of each file."""
        if folder not in self._listings:
            try:
                with os.scandir(folder) as found:
                    self._listings[folder] = {entry.name for entry in found if entry.is_file()}
            except OSError:
                self._listings[folder] = set()
        return self._listings[folder]

    def __post_init__(self) -> None:
        self._listings: dict[str, set[str]] = {}


def _category_ids(part: ObjectPart, numbers: np.ndarray, count: int) -> tuple[int | str, ...]:
    """Return the id of each class in a part, () if the part does not have all classes."""
    pairs = zip(numbers.tolist(), part.index.facts.category_ids, strict=False)
    ids = {number: identity for number, identity in pairs if number >= 0}
    return tuple(ids[number] for number in range(count)) if len(ids) == count else ()


def _upright(path: str, stored: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the upright image; the header is read only if it can differ."""
    if size != stored[::-1]:
        return stored
    try:
        return upright_size(path)
    except BrokenImageError:
        return stored
