"""Find all problems of a data set: of its files, their entries, and the pixels of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from torchvision.tv_tensors import Mask

from convattn.data.images import BrokenImageError
from convattn.data.joint.padding import IGNORED
from convattn.data.named import offered_targets, open_dataset
from convattn.data.problems import COMMAND, NoMasksError, Problem, UnusableDataError
from convattn.data.reading import image_reason
from convattn.data.scan import in_order
from convattn.data.segments.class_values import unused_classes
from convattn.data.source import DataSource, ImageSet, Targets, relative_name


@dataclass(frozen=True)
class CheckedData:
    """What was found in a data set.

    Args:
        name: of the data set, as for `open_dataset`.
        targets: the kinds of targets that were checked.
        images: number of images that can be used.
        class_names: the classes.
        problems: all problems.
        notes: what was decided about the data set as a whole, and why it cannot be used.
    """

    name: str
    targets: list[str]
    images: int = 0
    class_names: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def by_kind(self) -> dict[str, list[Problem]]:
        """The problems of each kind, the most frequent kind first."""
        found: dict[str, list[Problem]] = {}
        for problem in self.problems:
            found.setdefault(problem.kind, []).append(problem)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON can represent."""
        return {
            "data": self.name,
            "targets": self.targets,
            "images": self.images,
            "classes": list(self.class_names),
            "counts": {kind: len(problems) for kind, problems in self.by_kind.items()},
            "problems": [vars(problem) for problem in self.problems],
            "notes": list(self.notes),
        }


def check_dataset(name: str, *, targets: Targets | None = None, **options: Any) -> CheckedData:
    """Return all problems of a data set; all images are decoded.

    Args:
        name: as for `open_dataset`.
        targets: the kind of targets that is checked; by default all that the files have.
        **options: further arguments of `open_dataset`.

    Raises:
        ValueError: there is no such format, or the data is unusable as a whole.
        FileNotFoundError: there is nothing at the path.
    """
    checked: list[CheckedData] = []
    missing: list[FileNotFoundError] = []
    for chosen in _kinds(targets, name):
        try:
            checked.append(_check(name, chosen, options))
        except FileNotFoundError as error:
            missing.append(error)
    if not checked:
        raise missing[0]
    return _joined(checked)


def _kinds(targets: Targets | None, name: str) -> list[str]:
    if targets is not None:
        return [targets]
    offered = offered_targets(name)
    if "instances" in offered:  # these have boxes too
        return ["instances"]
    return list(offered) or ["classes"]


def _check(name: str, targets: str, options: dict[str, Any]) -> CheckedData:
    try:
        source = open_dataset(
            name, targets=cast(Targets, targets), max_broken=1.0, check=False, **options
        )
    except NoMasksError:
        return _check(name, "boxes", options)
    except UnusableDataError as error:
        if not error.problems:
            raise
        notes = (str(error).partition("\n")[0],)
        return CheckedData(name, [targets], problems=error.problems, notes=notes)
    found = _Found(source, with_targets=targets in ("segments", "classes"))
    unused = unused_classes(source.class_names, found.used) if found.used else ""
    return CheckedData(
        name,
        [targets],
        found.images,
        source.class_names,
        tuple(dict.fromkeys((*source.problems, *found.problems))),
        tuple(note for note in (*source.notes, unused) if note and COMMAND not in note),
    )


def _joined(checked: Sequence[CheckedData]) -> CheckedData:
    """Return one result for all kinds of targets of a data set."""
    if len(checked) == 1:
        return checked[0]
    problems = [problem for part in checked for problem in part.problems]
    notes = [note for part in checked for note in part.notes]
    return CheckedData(
        checked[0].name,
        [name for part in checked for name in part.targets],
        max(part.images for part in checked),
        max((part.class_names for part in checked), key=len),
        tuple(dict.fromkeys(problems)),
        tuple(dict.fromkeys(notes)),
    )


@dataclass
class _Found:
    """Decodes all images of a data set.

    Args:
        source: the data set.
        with_targets: whether a target is a file that is decoded too.
    """

    source: DataSource
    with_targets: bool
    images: int = 0
    problems: list[Problem] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        known = {problem.file for problem in self.source.problems}
        reasons = {problem.reason for problem in self.source.problems}
        for file in self.source.broken:
            name = relative_name(file.path, self.source.root)
            if name not in known and file.reason not in reasons:
                self.problems.append(Problem(name, "", image_reason(file.reason)))
        for part in (self.source.train, self.source.val):
            self._read(part)
        if self.used and len(self.used) < 2 <= self.source.num_classes:
            reason = "the masks have fewer than two classes: correct `ignored` or the class numbers"
            self.problems.append(Problem(self.source.name, "", reason))

    def _read(self, part: ImageSet) -> None:
        def problem(index: int) -> Problem | None:
            try:
                part.image(index)
            except BrokenImageError as error:
                return Problem(self._name(error), "", image_reason(error.reason))
            try:
                if self.with_targets:
                    self._add_classes(part.target(index))
            except BrokenImageError as error:
                return Problem(self._name(error), "", _target_reason(error.reason))
            return None

        for found in in_order(problem, range(len(part)), "decoding images"):
            if found is None:
                self.images += 1
            else:
                self.problems.append(found)

    def _add_classes(self, target: Any) -> None:
        if isinstance(target, Mask):
            self.used.update(np.unique(target.numpy()).tolist())
            self.used.discard(IGNORED)

    def _name(self, error: BrokenImageError) -> str:
        return relative_name(error.path, self.source.root)


def _target_reason(reason: str) -> str:
    """Return the reason of a problem, which begins with its kind."""
    return reason if ": " in reason else f"the target cannot be read: {reason}"
