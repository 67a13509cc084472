"""Which class a folder's name means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from convattn.names import first_of, listed, nfc, shown


class UnknownClassesError(ValueError):
    """A folder holds classes that the model does not know, or that are not in training."""


class ClassNumbers:
    """The numbers of classes by their names.

    A name means the class that is written the same in Unicode's form NFC; if there is none, and
    one class alone differs from it in capital letters only, that one.

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
        """Return the number of the class that each name means, None where there is no such class.

        A class that one of the names means exactly is not taken by another.
        """
        found = {name: self._exact.get(nfc(name)) for name in names}
        taken = set(found.values())
        for name in [name for name, number in found.items() if number is None]:
            near = self._folded.get(nfc(name).casefold(), [])
            if len(near) == 1 and near[0] not in taken:
                found[name] = near[0]
        return found

    def notes(self, names: Sequence[str], where: str) -> list[str]:
        """Return what is to be said of folders in ``where`` whose names are not their classes'."""
        twice = [name for name, count in Counter(map(nfc, names)).items() if count > 1]
        other = [
            f"'{shown(name)}' for '{shown(self.names[number])}'"
            for name, number in self.match(names).items()
            if number is not None and nfc(name) != self.names[number]
        ]
        notes = []
        if twice:
            notes.append(f"one class in {where}, in two forms of Unicode: {listed(twice)}")
        if other:
            notes.append(f"taken in {where}, whatever the capital letters: {first_of(other)}")
        return notes
