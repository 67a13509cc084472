"""Problems of the entries and files of a data set, and how many of them training accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convattn.names import counted, first_of, shown

_SHOWN = 10
COMMAND = "`convattn data check"


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Args:
        file: the file, relative to the folder of the data set.
        entry: the entry of the file, such as "annotation 17"; "" for the whole file.
        reason: what is wrong: a few words that are the same for all problems of this kind, or such
            words, ": " and the details, as in "the box has no area: x 10 to 10, y 5 to 9".
    """

    file: str
    entry: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(": ")[0]

    @property
    def place(self) -> str:
        """The file and the entry."""
        return f"{self.file}, {self.entry}" if self.entry else self.file

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class UnusableDataError(ValueError):
    """The files of a data set cannot be used.

    Args:
        message: what is wrong and what to do.
        problems: all problems that were found.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class NoMasksError(ValueError):
    """The files have boxes of objects, but no masks."""


def check_entries(
    problems: Sequence[Problem], total: int, max_broken: float, name: str, noun: str = "object"
) -> list[str]:
    """Return a sentence on the entries that are left out; no sentence if there are none.

    Args:
        problems: one for each entry that is left out.
        total: number of entries, with those that are left out.
        max_broken: the share that may be left out.
        name: name of the data set, as for `open_dataset`.
        noun: what an entry is called.

    Raises:
        UnusableDataError: a larger share is left out.
    """
    if not problems:
        return []
    check = f"{COMMAND} {shown(name)}`"
    if len(problems) > max_broken * total:
        lines = "".join(f"\n  {shown(problem)}" for problem in problems[:_SHOWN])
        more = len(problems) - _SHOWN
        raise UnusableDataError(
            f"{len(problems):,} of {counted(total, noun)} in {shown(name)} cannot be used "
            f"({len(problems) / max(1, total):.1%}, at most {max_broken:.1%} are left out):{lines}"
            + (f"\n  and {more:,} more" if more > 0 else "")
            + f"\nCorrect them ({check} lists all of them), or allow more with max_broken=0.1",
            problems,
        )
    are = "is" if len(problems) == 1 else "are"
    first = first_of([f"{shown(p.place)} ({shown(p.kind)})" for p in problems], 2)
    return [
        f"{len(problems):,} of {counted(total, noun)} {are} left out: {first}; "
        f"{check} lists all of them"
    ]
