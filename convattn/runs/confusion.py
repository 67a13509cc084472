"""Counts of images by true and predicted class, most of which are zero where classes are many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from torch import Tensor

_LARGEST_TABLE = 100  # classes; for more, a file has only the counts that are not zero


class Confusion(Sequence[list[int]]):
    """A confusion matrix, ``confusion[true][predicted]``, which stores the counts above zero.

    Args:
        classes: number of classes.
        counts: (true class, predicted class, number of images).
    """

    def __init__(self, classes: int, counts: Iterable[tuple[int, int, int]] = ()) -> None:
        self._rows: list[dict[int, int]] = [{} for _ in range(classes)]
        for true, predicted, count in counts:
            if not (0 <= true < classes and 0 <= predicted < classes and count >= 0):
                raise ValueError(
                    f"a confusion of {classes} classes cannot hold {[true, predicted, count]}"
                )
            if count:
                self._rows[true][predicted] = count

    @staticmethod
    def of(labels: Tensor, predicted: Tensor, classes: int) -> Confusion:
        """Count the images.

        Args:
            labels: (N,), true classes.
            predicted: (N,), predicted classes.
            classes: number of classes.
        """
        cells, counts = (labels * classes + predicted).unique(return_counts=True)
        found = zip(cells.tolist(), counts.tolist(), strict=True)
        return Confusion(classes, ((*divmod(cell, classes), count) for cell, count in found))

    @staticmethod
    def from_json(value: Any) -> Confusion:
        """Read what `to_json` returned, in either form.

        Raises:
            ValueError: the value has neither form.
        """
        if isinstance(value, Confusion):
            return value
        try:
            if isinstance(value, dict):
                return Confusion(int(value["classes"]), [(t, p, n) for t, p, n in value["counts"]])
            if any(len(row) != len(value) for row in value):
                raise ValueError("its rows and columns differ in number")
            cells = ((t, p, int(n)) for t, row in enumerate(value) for p, n in enumerate(row) if n)
            return Confusion(len(value), cells)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"a confusion is rows of counts or a list of counts: {error}"
            ) from error

    def to_json(self) -> Any:
        """Return rows of counts; for more than 100 classes, only the counts that are not zero."""
        if len(self) <= _LARGEST_TABLE:
            return list(self)
        return {"classes": len(self), "counts": [list(cell) for cell in self.counts()]}

    def counts(self) -> Iterator[tuple[int, int, int]]:
        """Yield (true class, predicted class, number of images) of each count that is not zero."""
        for true, row in enumerate(self._rows):
            for predicted in sorted(row):
                yield true, predicted, row[predicted]

    def row(self, true: int) -> dict[int, int]:
        """Return the counts of a true class that are not zero, by predicted class."""
        return dict(self._rows[true])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...

    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        row = self._rows[index]
        return [row.get(predicted, 0) for predicted in range(len(self))]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Confusion):
            return self._rows == other._rows
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # equal counts make equal objects, and counts are mutable

    def __repr__(self) -> str:
        return f"Confusion({len(self)}, {list(self.counts())})"
