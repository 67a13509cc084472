"""What the data of a run was: found again when the run goes on, whatever was added since."""

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
    """The data of a run; files are named relative to the data's folder, which may move.

    Args:
        name: what the data was opened as.
        class_names: in the order of the labels.
        train: number of images to learn from.
        val: number of images held out.
        split_here: whether the held-out images were chosen by convattn, not by the data set.
        train_files: the files to learn from, in their order; empty where the data has no folder.
        held_out: the files held out, in their order.
        train_digest: SHA-256 over names and sizes of the files to learn from; "" without files.
        held_out_digest: the same of the files held out.
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
        """Return plain values, such as JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DataRecord:
        """Read what `to_dict` returned; keys of a later version are passed over.

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
                raise ValueError(f"its {field.name!r} is not as convattn writes it")
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
            raise ValueError(f"{what}, which is no folder")
        if gone := _Known(self, source).held_out_gone:
            raise ValueError(
                f"{what}: it lacks {len(gone):,} of {counted(len(self.held_out), 'image')} that "
                f"the run holds out: {listed(gone, 3)}"
            )

    def restore(self, source: DataSource) -> DataSource:
        """Return a data set with the images that the run learns from and holds out, and no others.

        Images that were added since are in neither part, so that a run that goes on has the same
        epochs as a run that was never stopped.

        Args:
            source: opened with `options`.

        Returns:
            The data set; its notes say what was added, what is gone and what has another size.

        Raises:
            ValueError: the data set has lost its own held-out part, or all images of a part.
        """
        if not self.held_out:
            return replace(source, notes=(*source.notes, *self._counts(source)))
        where = shown(source.name)
        if source.split_here and not self.split_here:
            raise ValueError(
                f"{where} has no held-out part any more, such as the run has: "
                f"{listed(self.held_out, 1)} is not there. Restore the folder of that part"
            )
        known = _Known(self, source)
        for indices, what in ((known.train, "learns from"), (known.held_out, "holds out")):
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
        """Return a sentence for each part of data without files whose number of images changed."""
        parts = (("to learn from", self.train, source.train), ("held out", self.val, source.val))
        return [
            f"the run had {counted(before, 'image')} {what}, {shown(source.name)} now has "
            f"{len(images):,}"
            for what, before, images in parts
            if before != len(images)
        ]


class _Known:
    """The images of a data set that a run knows.

    Args:
        record: of the run.
        source: the data set, split in any way.

    Attributes:
        images: all images.
        train: indices of the images that the run learns from, in the order of the run.
        held_out: indices of the images that the run holds out.
        train_gone: names of images to learn from that are not there.
        held_out_gone: names of held-out images that are not there.
        added: names of images that the run does not know.
    """

    def __init__(self, record: DataRecord, source: DataSource) -> None:
        self.images: ImageSet = Joined(source.train, source.val)
        self._record = record
        parts = (source.train, source.val)
        self._paths = [part.path(index) for part in parts for index in range(len(part))]
        names = [relative_name(path, source.root) for path in self._paths]
        where = {name: index for index, name in enumerate(names)}
        known = {*record.train_files, *record.held_out}
        # Copying a folder to another system may change the form of Unicode of its names.
        forms = {nfc(name): where[name] for name in where.keys() - known}

        def find(files: Sequence[str]) -> tuple[list[int], list[str]]:
            found = {name: where[name] if name in where else forms.get(nfc(name)) for name in files}
            gone = [name for name, index in found.items() if index is None and name not in broken]
            return [index for index in found.values() if index is not None], gone

        broken = {relative_name(file.path, source.root) for file in source.broken}
        self.train, self.train_gone = find(record.train_files)
        self.held_out, self.held_out_gone = find(record.held_out)
        used, skipped = {*self.train, *self.held_out}, set(map(nfc, record.broken))
        others = (name for index, name in enumerate(names) if index not in used)
        self.added = [name for name in others if nfc(name) not in skipped]

    def train_digest(self) -> str:
        """Return the digest of the files to learn from, "" if some are not there."""
        return self._digest(self._record.train_files, self.train)

    def held_out_digest(self) -> str:
        """Return the digest of the held-out files, "" if some are not there."""
        return self._digest(self._record.held_out, self.held_out)

    def _digest(self, files: Sequence[str], indices: Sequence[int]) -> str:
        if len(files) != len(indices):
            return ""
        return _digest(zip(files, (self._paths[index] for index in indices), strict=True))

    def notes(self, where: str) -> list[str]:
        """Return a sentence on images that were added, on those that are gone, and on sizes."""
        notes = []
        if self.added:
            were, they = ("was", "it is") if len(self.added) == 1 else ("were", "they are")
            notes.append(
                f"{counted(len(self.added), 'image')} {were} added to {where} since the run began, "
                f"such as {listed(self.added, 1)}: {they} neither learnt from nor held out"
            )
        gone = [("learnt from", self.train_gone)]
        if not self._record.split_here:  # else `open_dataset` has said it
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
    except OSError:  # gone since the folder was listed
        return -1
