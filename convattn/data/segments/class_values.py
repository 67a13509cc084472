"""The classes that the values of masks stand for, and lists of class names in files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convattn.data.folders.classes import ClassNumbers, UnknownClassesError
from convattn.data.joint.padding import IGNORED
from convattn.names import did_you_mean, listed, nfc, shown

MOST_CLASSES = 255  # the value 255 of a target is IGNORED
LISTS = ("classes.txt", "class_names.txt", "labels.txt", "labelmap.txt")
_UNUSED = ("__ignore__", "_ignore_")  # labelme's line for the value -1


@dataclass(frozen=True)
class ClassValues:
    """Which class a value of a mask stands for.

    Args:
        values: the value of each class, in the order of the class numbers.
        names: the name of each class.
        ignored: the value of pixels without a class.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: int

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(map(nfc, self.names)).items() if count > 1]
        if twice:
            raise ValueError(f"two classes have the same name: {listed(twice)}; rename one of them")
        if not 0 < len(self.names) <= MOST_CLASSES or max(self.values) > MOST_CLASSES:
            raise ValueError(
                f"{len(self.names)} classes: masks of 8 bits have 1 to {MOST_CLASSES} classes"
            )

    @staticmethod
    def of_list(names: Sequence[str], ignored: int, first: int = 0) -> ClassValues:
        """Return the classes of a list with one name per value, of which ``ignored`` may be one.

        Args:
            names: of the values ``first``, ``first + 1``, ...
            ignored: the value without a class.
            first: the value of the first name.
        """
        pairs = [(value, name) for value, name in enumerate(names, first) if value != ignored]
        return ClassValues(tuple(v for v, _ in pairs), tuple(n for _, n in pairs), ignored)

    @staticmethod
    def of_classes(names: Sequence[str], ignored: int) -> ClassValues:
        """Return classes with the values 0, 1, ... without ``ignored``."""
        values = (value for value in itertools.count() if value != ignored)
        return ClassValues(tuple(itertools.islice(values, len(names))), tuple(names), ignored)

    def numbers(self, names: Sequence[str] | None) -> list[int]:
        """Return the number of each class in a list of the classes of a model.

        Args:
            names: the model's classes; None for these ones.

        Raises:
            UnknownClassesError: a class is not in the list.
        """
        if names is None:
            return list(range(len(self.names)))
        found = ClassNumbers(names).match(self.names)
        unknown = [name for name, number in found.items() if number is None]
        if unknown:
            raise UnknownClassesError(
                f"the data has classes that are not in the model's classes: {listed(unknown)}"
                f"{did_you_mean(unknown[0], names)} Known are {listed(list(names))}"
            )
        return [number or 0 for number in found.values()]

    def table(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the class number of each of the 256 values; the others are `IGNORED`."""
        table = np.full(256, IGNORED, np.uint8)
        table[list(self.values)] = numbers
        return table

    @property
    def known(self) -> np.ndarray:
        """Whether each of the 256 values is a class or ignored."""
        known = np.zeros(256, bool)
        known[[*self.values, self.ignored]] = True
        return known

    @property
    def text(self) -> str:
        """The values of the classes and the ignored value, for messages."""
        return f"the classes have the values {ranges(self.values)}, ignored is {self.ignored}"


def unused_classes(names: Sequence[str], used: Collection[int]) -> str:
    """Return a sentence on the classes that no pixel has, "" if there are none.

    Args:
        names: of the classes.
        used: the numbers of the classes that occur.
    """
    unused = [name for number, name in enumerate(names) if number not in used]
    return f"no pixel of the masks has the class {listed(unused)}" if unused else ""


def ranges(values: Sequence[int]) -> str:
    """Return sorted values as text, such as "0 to 10 and 13"."""
    groups: list[list[int]] = []
    for value in sorted(values):
        if groups and value == groups[-1][-1] + 1:
            groups[-1].append(value)
        else:
            groups.append([value])
    words = [str(g[0]) if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups]
    shortened = words if len(words) <= 12 else [*words[:11], "more", words[-1]]
    return " and ".join(filter(None, [", ".join(shortened[:-1]), shortened[-1]]))


def find_class_list(folder: Path) -> Path | None:
    """Return the file with class names in a folder, None if there is none."""
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def read_class_list(path: Path) -> list[str]:
    """Return the class names of a file: one in each line.

    Of a line with colons, as in "car:0,0,142::", the name is what stands before the first one.
    Lines that start with "#" are comments.

    Raises:
        ValueError: the file is no list of names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"cannot read class names from {shown(path)}: {error}; the file must be UTF-8 text"
        ) from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    names = [line.partition(":")[0].strip() for line in lines if not line.startswith("#")]
    names = [name for name in names if name not in _UNUSED]
    if not names or "" in names:
        place = f"line {names.index('') + 1} is empty" if names else "it has no line"
        raise ValueError(
            f"{shown(path)} is no list of class names: {place}; write the name of the value 0 in "
            "the first line, that of the value 1 in the second, and so on"
        )
    return names
