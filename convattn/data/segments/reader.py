"""Makes data sets with a class for each pixel from images and masks of the same names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from convattn.data.images import BrokenImageError, ImageInfo, upright_size
from convattn.data.problems import Problem, UnusableDataError, check_entries
from convattn.data.reading import BEFORE, HEADERS_OF, SourceReader, image_reason
from convattn.data.scan import DECODE_AT_MOST, find_broken, in_order
from convattn.data.segments.class_values import ClassValues, ranges, unused_classes
from convattn.data.segments.images import SegmentImages, unknown_values
from convattn.data.segments.mask_files import MaskInfo, check_mask
from convattn.data.source import BrokenFile, DataSource, relative_name
from convattn.data.survey import spread
from convattn.names import shown


@dataclass(frozen=True)
class SegmentPart:
    """A part of a data set, such as the training part.

    Args:
        title: the folder or the file that lists it, for messages.
        images: paths of the images.
        masks: for each image the path of its mask, "" if there is none.
        spare: paths of masks without an image.
    """

    title: str
    images: list[str]
    masks: list[str]
    spare: list[str] = field(default_factory=list)


@dataclass
class SegmentReader(SourceReader):
    """Makes a `DataSource` of the parts of a data set."""

    def read(
        self,
        train: SegmentPart,
        val: SegmentPart | None,
        classes: ClassValues | None,
        *,
        ignored: int = 255,
    ) -> DataSource:
        """Return the data set.

        Args:
            train: the part to learn from.
            val: the part held out; None holds out some images of ``train``.
            classes: the classes; None if they have no names, only numbers.
            ignored: the value without a class, for classes without names.

        Raises:
            UnusableDataError: too many images or masks have problems, or no image is left.
            UnknownClassesError: there is a class that is not among the given ones.
        """
        class_names = self.reading.class_names
        if classes is None and class_names is not None:
            classes = ClassValues.of_classes(class_names, ignored)
        parts = [train] if val is None else [train, val]
        large = sum(len(part.images) for part in parts) > DECODE_AT_MOST
        decode = classes is None or (self.reading.check and not large)
        masks = [self._inspect(part, decode=decode, few=large and not decode) for part in parts]
        if classes is None:
            self._check_masks(parts, masks)
            classes = self._numbered(parts, masks, ignored)
        self._check_values(parts, masks, classes)
        if decode and class_names is None:
            self._check_used(masks, classes)
        rows = [self._usable(*pair, large) for pair in zip(parts, masks, strict=True)]
        total = sum(len(part.images) for part in parts)
        self.notes += check_entries(
            self.problems, total, self.reading.max_broken, self.name, "image"
        )
        self._add_spare(parts)
        if val is None:
            rows = self.split(rows[0], lambda row: relative_name(train.images[row], self.root))
            parts = [train, train]
        table = classes.table(classes.numbers(class_names))
        sets = []
        for part, chosen in zip(parts, rows, strict=True):
            images, masked = ([paths[row] for row in chosen] for paths in (part.images, part.masks))
            sets.append(SegmentImages(images, masked, table, classes.known, classes.text))
        return self.source(
            [part.title for part in parts],
            sets,
            class_names or classes.names,
            split_here=val is None,
        )

    def _inspect(
        self, part: SegmentPart, *, decode: bool, few: bool
    ) -> dict[int, MaskInfo | BrokenImageError]:
        """Return the properties or the error of each mask, by the row of its image."""
        rows, known = self.unread(
            len(part.images), lambda row: relative_name(part.images[row], self.root)
        )
        self.broken += [BrokenFile(part.images[row], BEFORE) for row in known]
        rows = [row for row in rows if self._has_mask(part, row)]
        if part.images and not rows and not known:
            self._raise_no_mask(part)
        read = set(spread(rows, HEADERS_OF) if few else rows)

        def inspect(row: int) -> MaskInfo | BrokenImageError:
            try:
                return check_mask(part.masks[row], decode=decode)
            except BrokenImageError as error:
                return error

        title = "checking masks" if decode else "reading the headers of masks"
        found = dict(zip(sorted(read), in_order(inspect, sorted(read), title), strict=True))
        return {row: found.get(row, MaskInfo((0, 0))) for row in rows}

    def _has_mask(self, part: SegmentPart, row: int) -> bool:
        if not part.masks[row]:
            gone = not os.path.lexists(part.images[row])
            why = "the image is missing" if gone else "the image has no mask"
            self._leave_out(part, row, part.images[row], why)
        return bool(part.masks[row])

    def _raise_no_mask(self, part: SegmentPart) -> None:
        spare = f"; masks are called {shown(os.path.basename(part.spare[0]))}" if part.spare else ""
        raise UnusableDataError(
            f"no image of {shown(part.title)} has a mask: a mask has the name of its image, which "
            f"is {shown(os.path.basename(part.images[0]))} here{spare}",
            self.problems,
        )

    def _check_masks(
        self,
        parts: Sequence[SegmentPart],
        masks: Sequence[dict[int, MaskInfo | BrokenImageError]],
    ) -> None:
        """Raise an error if too many masks cannot be read, before their values are judged."""
        found = [
            Problem(relative_name(part.masks[row], self.root), "", info.reason)
            for part, infos in zip(parts, masks, strict=True)
            for row, info in infos.items()
            if isinstance(info, BrokenImageError)
        ]
        total = sum(map(len, masks))
        if found and len(found) == total:
            raise UnusableDataError(
                f"no mask of {shown(self.name)} can be used: {shown(found[0])}", found
            )
        check_entries(found, total, self.reading.max_broken, self.name, "mask")

    def _check_used(
        self, masks: Sequence[dict[int, MaskInfo | BrokenImageError]], classes: ClassValues
    ) -> None:
        """Add a note on the classes that no pixel has.

        Raises:
            UnusableDataError: all pixels are of one class, or have none.
        """
        found = _values([info for infos in masks for info in infos.values()])
        used = {number for number, value in enumerate(classes.values) if value in found}
        if found and len(used) < 2 <= len(classes.names):
            raise UnusableDataError(
                f"the masks of {shown(self.name)} hold the values {ranges(sorted(found))}, but "
                f"{classes.text}: fewer than two classes occur. Save masks with the class numbers "
                "0, 1, 2, ..., or give the value without a class with ignored=VALUE",
                self.problems,
            )
        if unused := unused_classes(classes.names, used):
            self.notes.append(unused)

    def _numbered(
        self,
        parts: Sequence[SegmentPart],
        masks: Sequence[dict[int, MaskInfo | BrokenImageError]],
        ignored: int,
    ) -> ClassValues:
        """Return classes that are called by the values in the masks, which are 0, 1, ..."""
        found = sorted(_values([info for part in masks for info in part.values()]) - {ignored})
        full = [value for value in range(max(found, default=0) + 1) if value != ignored]
        fix = (
            "list the classes in classes.txt in the folder or with classes=FILE, a line for each "
            "value from 0, or save masks with the class numbers 0, 1, 2, ..."
        )
        if len(found) < 2:
            values = ranges(found) if found else "no other values"
            raise UnusableDataError(
                f"the masks of {shown(self.name)} hold fewer than two classes: {values}, and "
                f"ignored={ignored}; {fix}",
                self.problems,
            )
        if missing := sorted(set(full).difference(found)):
            value = 0 if missing == [0] else found[-1]
            are = "is" if len(missing) == 1 else "are"
            example = next(
                relative_name(part.masks[row], self.root)
                for part, infos in zip(parts, masks, strict=True)
                for row, info in infos.items()
                if found[-1] in _values([info])
            )
            raise UnusableDataError(
                f"the masks of {shown(self.name)} hold the values {ranges(found)} ({found[-1]} is "
                f"in {shown(example)}), and {ranges(missing)} {are} missing. If {value} marks "
                f"pixels without a class, give it with ignored={value}; else {fix}",
                self.problems,
            )
        self.notes.append(
            f"the classes have no names: they are called {found[0]} to {found[-1]}, as the values "
            f"of the masks; {ignored} is ignored. If another value marks pixels without a class, "
            "give it with ignored=VALUE"
        )
        return ClassValues(tuple(found), tuple(map(str, found)), ignored)

    def _check_values(
        self,
        parts: Sequence[SegmentPart],
        masks: Sequence[dict[int, MaskInfo | BrokenImageError]],
        classes: ClassValues,
    ) -> None:
        """Make errors of the masks with unknown values.

        Raises:
            UnusableDataError: more than ``max_broken`` of the masks have unknown values.
        """
        known = {int(value) for value in np.flatnonzero(classes.known)}
        found = _values([info for infos in masks for info in infos.values()])
        wrong = sorted(found - known)
        problems, total = [], 0
        for part, infos in zip(parts, masks, strict=True):
            total += len(infos)
            for row, info in infos.items():
                unknown = _values([info]) - known
                if unknown:
                    path = part.masks[row]
                    why = unknown_values(sorted(unknown), classes.text)
                    infos[row] = BrokenImageError(path, why)
                    problems.append(Problem(relative_name(path, self.root), "", why))
        if len(problems) > self.reading.max_broken * total:
            marks = "marks" if len(wrong) == 1 else "mark"
            raise UnusableDataError(
                f"{len(problems):,} of {total:,} masks of {shown(self.name)} hold values that are "
                f"no class, such as {shown(problems[0].file)}: the masks hold the values "
                f"{ranges(sorted(found))}, but {classes.text}. If {ranges(wrong)} {marks} pixels "
                f"without a class, give one value with ignored={wrong[0]}; else add the missing "
                "classes to the list of classes",
                [*self.problems, *problems],
            )

    def _usable(
        self, part: SegmentPart, masks: dict[int, MaskInfo | BrokenImageError], large: bool
    ) -> np.ndarray:
        """Return the rows of the images that can be used; the others become problems."""
        for row, info in masks.items():
            if isinstance(info, BrokenImageError):
                self._leave_out(part, row, part.masks[row], info.reason)
        sizes = {row: info.size for row, info in masks.items() if isinstance(info, MaskInfo)}
        rows = list(sizes)
        read = [row for row in rows if sizes[row] != (0, 0)]
        paths = [part.images[row] for row in read]

        def misfit(index: int, info: ImageInfo) -> str:
            return _misfit(paths[index], info.size, sizes[read[index]])

        decode = None if self.reading.check and not large else False
        broken = {f.path: f for f in find_broken(paths, self.survey, decode=decode, misfit=misfit)}
        for row, path in zip(read, paths, strict=True):
            if path in broken:
                why = broken[path].reason
                is_mask = why.startswith(_OTHER_SIZE)
                file = part.masks[row] if is_mask else path
                self._leave_out(part, row, file, image_reason(why))
        return np.array([row for row in rows if part.images[row] not in broken], dtype=np.int64)

    def _leave_out(self, part: SegmentPart, row: int, file: str, why: str) -> None:
        self.broken.append(BrokenFile(part.images[row], why))
        self.problems.append(Problem(relative_name(file, self.root), "", why))

    def _add_spare(self, parts: Sequence[SegmentPart]) -> None:
        """Add the masks without an image; nothing is left out for them."""
        spare = [relative_name(path, self.root) for part in parts for path in part.spare]
        self.problems += [Problem(name, "", "the mask has no image") for name in spare]
        if spare:
            masks = "1 mask has" if len(spare) == 1 else f"{len(spare):,} masks have"
            self.notes.append(f"{masks} no image, such as {shown(spare[0])}")


_OTHER_SIZE = "the mask has another size than its image"


def _misfit(path: str, stored: tuple[int, int], mask: tuple[int, int]) -> str:
    """Return why a mask does not fit an image, upright or as it is stored, "" if it does."""
    if mask == stored:
        return ""
    try:
        if mask == stored[::-1] and upright_size(path) == mask:
            return ""
    except BrokenImageError as error:
        return error.reason
    return f"{_OTHER_SIZE}: {mask[0]} x {mask[1]} instead of {stored[0]} x {stored[1]} pixels"


def _values(infos: Sequence[MaskInfo | BrokenImageError]) -> set[int]:
    """Return the values that occur in masks."""
    found = np.zeros(256, bool)
    for info in infos:
        if isinstance(info, MaskInfo) and info.values is not None:
            found |= info.values
    return {int(value) for value in np.flatnonzero(found)}
