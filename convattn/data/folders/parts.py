"""The parts of a folder: class folders, their images with labels, and what is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.folders.classes import ClassNumbers, UnknownClassesError
from convattn.data.folders.listing import Level, Listing, list_images, read_level
from convattn.data.folders.split import split_as_before, split_by_name, stratified_split
from convattn.data.reading import BEFORE
from convattn.data.scan import check_share, find_broken
from convattn.data.source import BrokenFile, relative_name
from convattn.data.survey import Survey
from convattn.names import counted, did_you_mean, listed, nfc, shown
from convattn.progress import Progress


@dataclass(frozen=True)
class Part:
    """A folder of class folders with their images, such as the training part of a data set."""

    folder: Path
    level: Level
    classes: dict[str, Listing]

    @property
    def names(self) -> list[str]:
        """Names of the class folders that hold images."""
        return [name for name, listing in self.classes.items() if listing.images]

    @property
    def listings(self) -> list[Listing]:
        """What the class folders hold, and the system folders beside them."""
        return [*self.classes.values(), Listing(system=Counter(self.level.system))]

    def notes(self, numbers: ClassNumbers) -> list[str]:
        """Return sentences on unusual class names and on images outside the class folders."""
        where = shown(self.folder)
        notes = numbers.notes(self.names, where)
        if self.level.images:
            images = counted(len(self.level.images), "image")
            notes.append(f"{images} beside the class folders in {where} passed over")
        return notes


@dataclass(frozen=True)
class LabelledFiles:
    """Image files, each with the number of its class."""

    paths: list[str]
    labels: list[int]

    def select(self, indices: Sequence[int]) -> LabelledFiles:
        """Return the files at these indices."""
        return LabelledFiles([self.paths[i] for i in indices], [self.labels[i] for i in indices])


@dataclass(frozen=True)
class PartReader:
    """Reads the images of the parts of a data set, and counts the unreadable ones.

    Args:
        root: the folder of the data set.
        max_broken: the share of unreadable images that may be left out.
        known_broken: relative names of images that are left out without being read.
        check: whether to decode all images to find the unreadable ones; else only headers are read.
        survey: sizes, kinds and values of the images are added to it.
    """

    root: Path
    max_broken: float = 0.01
    known_broken: Collection[str] = ()
    check: bool = True
    survey: Survey = field(default_factory=Survey)

    def read(
        self, part: Part, numbers: ClassNumbers, where: str
    ) -> tuple[LabelledFiles, list[BrokenFile]]:
        """Return the readable images of a part with their labels, and the unreadable ones.

        Args:
            part: the class folders.
            numbers: the classes.
            where: what defines the classes, for the message.

        Raises:
            UnknownClassesError: a folder is none of the classes.
            ValueError: more than ``max_broken`` of the images are unreadable.
        """
        found = numbers.match(part.names)
        if unknown := [name for name, number in found.items() if number is None]:
            raise UnknownClassesError(
                f"{shown(part.folder)} has classes that are not in {where}: {listed(unknown)}"
                f"{did_you_mean(nfc(unknown[0]), numbers.names)} Known are {listed(numbers.names)}"
            )
        images = [(path, n or 0) for name, n in found.items() for path in part.classes[name].images]
        broken = self._find_broken([path for path, _ in images])
        check_share(broken, len(images), self.max_broken, str(part.folder))
        left_out = {file.path for file in broken}
        kept = [(path, number) for path, number in images if path not in left_out]
        return LabelledFiles([path for path, _ in kept], [number for _, number in kept]), broken

    def _find_broken(self, paths: list[str]) -> list[BrokenFile]:
        names = [self.name(path) for path in paths]
        unread, known, _ = split_by_name(names, self.known_broken)
        broken = [BrokenFile(paths[i], BEFORE) for i in known]
        decode = None if self.check else False
        return broken + find_broken([paths[i] for i in unread], self.survey, decode=decode)

    def name(self, path: str) -> str:
        """Return the relative name of a file."""
        return relative_name(path, str(self.root))


def read_part(folder: Path) -> Part:
    """List the class folders in ``folder`` and the images in each."""
    level = read_level(folder)
    classes = {}
    with Progress("listing classes", len(level.folders), "classes") as progress:
        for name in level.folders:
            classes[name] = list_images(folder / name, progress)
            progress.advance()
    return Part(folder, level, classes)


def split_files(
    files: LabelledFiles, fraction: float, seed: int, folder: Path
) -> tuple[LabelledFiles, LabelledFiles]:
    """Return the files to learn from and those held out, each class in the same proportion."""
    kept, held_out = stratified_split(files.labels, fraction=fraction, seed=seed)
    if not held_out:
        raise ValueError(
            f"{shown(folder)} has one image per class, so no image can be held out; add images, or "
            "put the images into two folders, train and val"
        )
    return files.select(kept), files.select(held_out)


def split_files_as_before(
    files: LabelledFiles,
    broken: Sequence[BrokenFile],
    held_out: Collection[str],
    reader: PartReader,
) -> tuple[LabelledFiles, LabelledFiles, list[str]]:
    """Return the files to learn from, those held out, and notes, see `split_as_before`."""
    names = [reader.name(path) for path in files.paths]
    gone = [reader.name(file.path) for file in broken]
    kept, held, notes = split_as_before(names, gone, held_out, shown(reader.root))
    return files.select(kept), files.select(held), notes
