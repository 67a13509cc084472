"""How a data set of files is read, and what the readers of its formats have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from convattn.data.folders.split import split_as_before, split_by_name, stratified_split
from convattn.data.images import other_size
from convattn.data.problems import Problem, UnusableDataError
from convattn.data.source import BrokenFile, DataSource, ImageSet, relative_name
from convattn.data.survey import Survey, apply_value_range
from convattn.names import shown

BEFORE = "it was unreadable before"
HEADERS_OF = 1_000  # of large data sets the headers of so many files are read at the start
_MISMATCH = other_size((0, 0), (0, 0)).partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set of files is read.

    Args:
        class_names: number the classes as in this list.
        val_fraction: the share held out where the data set has no held-out part of its own.
        split_seed: seed of that split.
        max_broken: the share of images, and of entries of annotations, with problems that may be
            left out before it is an error.
        held_out: relative names of the images to hold out where the data set has no held-out part
            of its own; by default a new split is made.
        known_broken: relative names of images that are left out without being read.
        check: whether to decode all images; of large data sets, and without it, only headers are
            read.
        value_range: of float and deep images, the values that become 0 and 255; by default decided
            from the images.
    """

    class_names: Sequence[str] | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    max_broken: float = 0.01
    held_out: Collection[str] | None = None
    known_broken: Collection[str] = ()
    check: bool = True
    value_range: Sequence[float] | None = None


@dataclass
class SourceReader:
    """Makes a `DataSource` of images with annotations.

    Args:
        name: of the data set, as for `open_dataset`.
        root: the folder that the files' relative names start from.
        reading: how it is read.
        notes: what was decided about the data set, see `DataSource`.
        survey: sizes, kinds and values of the images are added to it.
        problems: see `DataSource`.
        broken: images that are left out.
    """

    name: str
    root: str
    reading: Reading
    notes: list[str] = field(default_factory=list)
    survey: Survey = field(default_factory=Survey)
    problems: list[Problem] = field(default_factory=list)
    broken: list[BrokenFile] = field(default_factory=list)

    def unread(self, count: int, name: Callable[[int], str]) -> tuple[list[int], list[int]]:
        """Return the rows of the images that are read, and of those that could not be read before.

        The names of a hundred thousand images take a second, so they are made only if needed.

        Args:
            count: the number of images.
            name: returns the relative name of the image of a row.
        """
        known = self.reading.known_broken
        if not known:
            return list(range(count)), []
        return split_by_name([name(row) for row in range(count)], known)[:2]

    def split(self, rows: np.ndarray, name: Callable[[int], str]) -> list[np.ndarray]:
        """Return the rows to learn from and those held out: a random split, or the split of before.

        Args:
            rows: of the images that can be used.
            name: returns the relative name of the image of a row.
        """
        how = self.reading
        if how.held_out is None:
            kept, held = stratified_split(
                [0] * len(rows), fraction=how.val_fraction, seed=how.split_seed
            )
        else:
            names = [name(row) for row in rows.tolist()]
            broken = [relative_name(file.path, self.root) for file in self.broken]
            kept, held, notes = split_as_before(names, broken, how.held_out, shown(self.root))
            self.notes += notes
        return [rows[kept], rows[held]]

    def source(
        self,
        titles: Sequence[str],
        sets: Sequence[ImageSet],
        class_names: Sequence[str],
        *,
        split_here: bool,
        category_ids: tuple[int | str, ...] = (),
    ) -> DataSource:
        """Return the data set.

        Args:
            titles: the files or folders of the part to learn from and of the part held out.
            sets: the images of the two parts.
            class_names: see `DataSource`.
            split_here: see `DataSource`.
            category_ids: see `DataSource`.

        Raises:
            UnusableDataError: a part has no images.
        """
        for title, images, what in zip(titles, sets, ("learn from", "hold out"), strict=True):
            if not len(images):
                raise UnusableDataError(
                    f"{shown(title)} of {shown(self.name)} has no image to {what}", self.problems
                )
        source = DataSource(
            name=self.name,
            class_names=tuple(class_names),
            train=sets[0],
            val=sets[1],
            split_here=split_here,
            broken=tuple(self.broken),
            root=self.root,
            notes=tuple(self.notes),
            category_ids=category_ids,
            problems=tuple(self.problems),
        )
        return apply_value_range(source, self.survey, self.reading.value_range)


def image_reason(reason: str) -> str:
    """Return the reason of a `Problem` for that of a `BrokenFile`."""
    known = reason.startswith(("the image is missing", "the mask ", _MISMATCH))
    return reason if known else f"the image cannot be read: {reason}"
