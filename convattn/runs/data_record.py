"""The record of a run's data, by which a resumed run uses the same images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from convattn.data import DataSource, ImageSet, Joined, Subset
from convattn.data.source import relative_name
from convattn.names import counted, listed, nfc, shown


@dataclass(frozen=True)
class DataRecord:
    """The data of a run; files have names relative to the folder of the data, which may move.

    Args:
        name: name of the data set, as in ``data=``.
        class_names: in the order of the labels.
        train: number of training images.
        val: number of held-out images.
        split_here: whether the held-out images were chosen by convattn, not by the data set.
        train_files: the training files, in their order; empty where the data has no folder.
        held_out: the held-out files, in their order.
        train_digest: SHA-256 over names and sizes of the training files; "" without files.
        held_out_digest: SHA-256 over names and sizes of the held-out files.
        broken: the files that could not be read.
    """

    name: str
    class_names: tuple[str, ...]
    train: int
    val: int
    split_here: bool = False
    train_files: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    train_digest: str = ""
    held_out_digest: str = ""
    broken: tuple[str, ...] = ()

    @staticmethod
    def of(source: DataSource) -> DataRecord:
        """Describe a data set."""
        train, val = dict(_files(source, source.train)), dict(_files(source, source.val))
        return DataRecord(
            name=source.name,
            class_names=source.class_names,
            train=len(source.train),
            val=len(source.val),
            split_here=source.split_here,
            train_files=tuple(train),
            held_out=tuple(val),
            train_digest=_digest(train.items()),
            held_out_digest=_digest(val.items()),
            broken=tuple(sorted(relative_name(file.path, source.root) for file in source.broken)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as values that JSON can represent."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DataRecord:
        """Read what `to_dict` returned; keys of a later version are ignored.

        Raises:
            ValueError: a key is missing, or its value has another type.
        """
        found: dict[str, Any] = {}
        for field in fields(DataRecord):
            if field.name not in values:
                raise ValueError(f"it has no {field.name!r}")
            value = values[field.name]
            kind = _KINDS[field.name]
            is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
            if not (is_names if kind is list else type(value) is kind):
                raise ValueError(f"its {field.name!r} has another type than convattn writes")
            found[field.name] = tuple(value) if kind is list else value
        return DataRecord(**found)

    def options(self) -> dict[str, Any]:
        """Return the arguments of `open_dataset` that open the run's data again."""
        held_out = {"held_out": self.held_out} if self.split_here and self.held_out else {}
        return {**held_out, "known_broken": self.broken, "check": False}

    def is_of(self, source: DataSource) -> bool:
        """Return whether all held-out files of the run are in a data set, with the same sizes."""
        known = _Known(self, source)
        return bool(known.held_out) and known.held_out_digest() == self.held_out_digest

    def check_moved(self, source: DataSource) -> None:
        """Raise `ValueError` unless a data set has all held-out files of the run."""
        what = f"{shown(source.name)} is not the data of the run, {shown(self.name)}"
        if not self.held_out:
            raise ValueError(f"{what}, which has no held-out files in a folder")
        if gone := _Known(self, source).held_out_gone:
            raise ValueError(
                f"{what}: it lacks {len(gone):,} of {counted(len(self.held_out), 'image')} that "
                f"the run holds out: {listed(gone, 3)}"
            )

    def restore(self, source: DataSource) -> DataSource:
        """Return a data set with only the training and the held-out images of the run.

        Images that were added later are in neither part, so that a resumed run has the same epochs
        as a run without interruption.

        Args:
            source: opened with `options`.

        Returns:
            The data set, with notes on images that were added, are missing or have another size.

        Raises:
            ValueError: the held-out part of the data set, or all images of a part, are missing.
        """
        if not self.held_out:
            return replace(source, notes=(*source.notes, *self._counts(source)))
        where = shown(source.name)
        if source.split_here and not self.split_here:
            raise ValueError(
                f"{where} no longer has the held-out part of the run, such as "
                f"{listed(self.held_out, 1)}: restore the folder of that part"
            )
        known = _Known(self, source)
        for indices, what in ((known.train, "trains on"), (known.held_out, "holds out")):
            if not indices:
                raise ValueError(f"{where} has none of the images that the run {what}")
        restored = replace(
            source,
            train=Subset(known.images, known.train),
            val=Subset(known.images, known.held_out),
            split_here=self.split_here,
        )
        return replace(restored, notes=(*source.notes, *known.notes(where)))

    def _counts(self, source: DataSource) -> list[str]:
        """Return a sentence for each part of data without files that has more or fewer images."""
        parts = (("for training", self.train, source.train), ("held out", self.val, source.val))
        return [
            f"the run had {counted(before, 'image')} {what}, {shown(source.name)} now has "
            f"{len(images):,}"
            for what, before, images in parts
            if before != len(images)
        ]


class _Known:
    """The images of a data set, matched with the record of a run.

    Args:
        record: the record of the run.
        source: the data set, with any split.

    Attributes:
        images: all images.
        train: indices of the training images of the run, in the order of the run.
        held_out: indices of the held-out images of the run.
        train_gone: names of training images that are missing.
        held_out_gone: names of held-out images that are missing.
        added: names of images that are not in the record.
    """

    def __init__(self, record: DataRecord, source: DataSource) -> None:
        self.images: ImageSet = Joined(source.train, source.val)
        self._record = record
        parts = (source.train, source.val)
        self._paths = [part.path(index) for part in parts for index in range(len(part))]
        names = [relative_name(path, source.root) for path in self._paths]
        own = {name: index for index, name in enumerate(names[: len(source.train)])}
        where = {name: index for index, name in enumerate(names)}
        known = {*record.train_files, *record.held_out}
        # A copy of a folder on another system may have names in another Unicode form.
        forms = {nfc(name): where[name] for name in where.keys() - known}

        def find(files: Sequence[str], where: Mapping[str, int]) -> tuple[list[int], list[str]]:
            found = {name: where[name] if name in where else forms.get(nfc(name)) for name in files}
            gone = [name for name, index in found.items() if index is None and name not in broken]
            return [index for index in found.values() if index is not None], gone

        broken = {relative_name(file.path, source.root) for file in source.broken}
        # An image of both parts may have other objects in each of them.
        self.train, self.train_gone = find(record.train_files, {**where, **own})
        self.held_out, self.held_out_gone = find(record.held_out, where)
        used = {names[index] for index in (*self.train, *self.held_out)}
        skipped = set(map(nfc, record.broken))
        others = (name for name in dict.fromkeys(names) if name not in used)
        self.added = [name for name in others if nfc(name) not in skipped]

    def train_digest(self) -> str:
        """Return the digest of the training files, "" if some are missing."""
        return self._digest(self._record.train_files, self.train)

    def held_out_digest(self) -> str:
        """Return the digest of the held-out files, "" if some are missing."""
        return self._digest(self._record.held_out, self.held_out)

    def _digest(self, files: Sequence[str], indices: Sequence[int]) -> str:
        if len(files) != len(indices):
            return ""
        return _digest(zip(files, (self._paths[index] for index in indices), strict=True))

    def notes(self, where: str) -> list[str]:
        """Return sentences on images that were added, that are missing or have another size."""
        notes = []
        if self.added:
            were, they = ("was", "it is") if len(self.added) == 1 else ("were", "they are")
            notes.append(
                f"{counted(len(self.added), 'image')} {were} added to {where} since the run began, "
                f"such as {listed(self.added, 1)}: {they} used neither for training nor for "
                "validation"
            )
        gone = [("used for training", self.train_gone)]
        if not self._record.split_here:  # else `open_dataset` adds this note
            gone.append(("held out", self.held_out_gone))
        for what, names in gone:
            if names:
                were, they = ("was", "is") if len(names) == 1 else ("were", "are")
                notes.append(
                    f"{counted(len(names), 'image')} that {were} {what} {they} no longer in "
                    f"{where}: {listed(names, 3)}"
                )
        before = (self._record.train_digest, self._record.held_out_digest)
        now = (self.train_digest(), self.held_out_digest())
        if any(new and new != old for old, new in zip(before, now, strict=True)):
            notes.append(f"files in {where} have other sizes than when the run began")
        return notes


_KINDS: dict[str, type] = {
    "name": str,
    "class_names": list,
    "train": int,
    "val": int,
    "split_here": bool,
    "train_files": list,
    "held_out": list,
    "train_digest": str,
    "held_out_digest": str,
    "broken": list,
}


def _digest(files: Iterable[tuple[str, str]]) -> str:
    """Return SHA-256 over names and sizes; ``files`` are pairs of a relative name and a path."""
    lines = sorted(f"{nfc(name)}\t{_size(path)}" for name, path in files)
    if not lines:
        return ""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _files(source: DataSource, images: ImageSet) -> Iterator[tuple[str, str]]:
    """Yield the relative name and the path of each image that is a file of the data's folder."""
    for index in range(len(images) if source.root else 0):
        if path := images.path(index):
            yield source.relative_name(images, index), path


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # the file was removed after the folder was listed
        return -1
