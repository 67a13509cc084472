"""What the data of a run was: compared with what is found there when the run goes on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from convattn.data import DataSource, ImageSet
from convattn.data.source import relative_name
from convattn.names import counted, listed


@dataclass(frozen=True)
class DataRecord:
    """The data of a run; files are named relative to the data's folder, which may move.

    Args:
        name: what the data was opened as.
        class_names: in the order of the labels.
        train: images to learn from.
        val: images held out.
        val_per_class: images held out of each class.
        held_out: the files that were held out; empty where the data has its own held-out part.
        digest: SHA-256 over names and sizes of all files; "" where the data is not in files.
        broken: the files that could not be read.
    """

    name: str
    class_names: tuple[str, ...]
    train: int
    val: int
    val_per_class: tuple[int, ...] = ()
    held_out: tuple[str, ...] = ()
    digest: str = ""
    broken: tuple[str, ...] = ()

    @staticmethod
    def of(source: DataSource) -> DataRecord:
        """Describe a data set."""
        labels = Counter(source.val.label(index) for index in range(len(source.val)))
        held_out = (name for name, _ in _files(source, source.val)) if source.split_here else ()
        return DataRecord(
            name=source.name,
            class_names=source.class_names,
            train=len(source.train),
            val=len(source.val),
            val_per_class=tuple(labels[number] for number in range(source.num_classes)),
            held_out=tuple(sorted(held_out)),
            digest=_digest(source),
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
            kind, item = _KINDS[field.name]
            right = isinstance(value, kind) and not isinstance(value, bool)
            if not right or (kind is list and not all(isinstance(v, item) for v in value)):
                raise ValueError(f"its {field.name!r} is not as convattn writes it")
            found[field.name] = tuple(value) if kind is list else value
        return DataRecord(**found)

    def compare(self, source: DataSource) -> list[str]:
        """Return how the data differs from what it was, a sentence each; none if it is the same."""
        now = DataRecord.of(source)
        notes = _changed_classes(self.class_names, now.class_names)
        if gone := sorted({*self.held_out} - {name for name, _ in _all_files(source)}):
            files = counted(len(gone), "held-out file")
            notes.append(f"the data has lost {files} of the run: {listed(gone, 3)}")
        for what, before, count in (
            ("to learn from", self.train, now.train),
            ("held out", self.val, now.val),
        ):
            if before != count:
                notes.append(
                    f"the run had {counted(before, 'image')} {what}, the data has {count:,}"
                )
        if not notes and self.digest and now.digest != self.digest:
            notes.append("names or sizes of the data's files have changed since the run began")
        return notes


_KINDS: dict[str, tuple[type, type]] = {
    "name": (str, str),
    "class_names": (list, str),
    "train": (int, int),
    "val": (int, int),
    "val_per_class": (list, int),
    "held_out": (list, str),
    "digest": (str, str),
    "broken": (list, str),
}


def _changed_classes(before: tuple[str, ...], now: tuple[str, ...]) -> list[str]:
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    notes = []
    if gone:
        notes.append(f"the data no longer has the classes {listed(gone, 5)}")
    if new:
        notes.append(f"the data has the new classes {listed(new, 5)}")
    if not notes and before != now:
        notes.append("the data numbers its classes differently")
    return notes


def _digest(source: DataSource) -> str:
    lines = sorted(f"{name}\t{_size(path)}" for name, path in _all_files(source))
    if not lines:
        return ""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _all_files(source: DataSource) -> Iterator[tuple[str, str]]:
    yield from _files(source, source.train)
    yield from _files(source, source.val)


def _files(source: DataSource, images: ImageSet) -> Iterator[tuple[str, str]]:
    """Yield the relative name and the path of each image that is a file."""
    for index in range(len(images)):
        if path := images.path(index):
            yield source.relative_name(images, index), path


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone since the folder was listed
        return -1
