"""The numbers of classes by the names of their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from convattn.names import first_of, listed, nfc, shown


class UnknownClassesError(ValueError):
    """A folder holds classes that are not in the model or in the training part."""


class ClassNumbers:
    """The numbers of classes by their names.

    A name stands for the class of the same name in Unicode's form NFC. If there is none, it stands
    for the class whose name differs in upper and lower case only, if there is exactly one.

    Args:
        names: the classes in the order of their numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(map(nfc, names))
        self._exact = {name: number for number, name in reversed(list(enumerate(self.names)))}
        self._folded: dict[str, list[int]] = {}
        for name, number in self._exact.items():
            self._folded.setdefault(name.casefold(), []).append(number)

    def match(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return the number of the class of each name, None where there is no such class.

        A class that one of the names equals is not given to a name that differs in case.
        """
        found = {name: self._exact.get(nfc(name)) for name in names}
        taken = set(found.values())
        for name in [name for name, number in found.items() if number is None]:
            near = self._folded.get(nfc(name).casefold(), [])
            if len(near) == 1 and near[0] not in taken:
                found[name] = near[0]
        return found

    def notes(self, names: Sequence[str], where: str) -> list[str]:
        """Return sentences on folders in ``where`` whose names differ from their classes' names."""
        twice = [name for name, count in Counter(map(nfc, names)).items() if count > 1]
        other = [
            f"'{shown(name)}' as '{shown(self.names[number])}'"
            for name, number in self.match(names).items()
            if number is not None and nfc(name) != self.names[number]
        ]
        notes = []
        if twice:
            notes.append(f"one class in {where}, in two forms of Unicode: {listed(twice)}")
        if other:
            notes.append(f"read in {where} without regard to case: {first_of(other)}")
        return notes
