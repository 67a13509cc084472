"""Statistics of the images of a data set, and the one range of values decided from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from convattn.data.images import ImageInfo
from convattn.data.source import DataSource
from convattn.data.value_range import (
    ValueRange,
    check_range,
    clipped,
    decide_range,
    extent,
    misfit,
    named,
    unused,
)
from convattn.names import shown

_T = TypeVar("_T")
SET_RANGE = (
    "value_range sets it (value_range=[LOW,HIGH] in train, --value-range LOW HIGH in eval and "
    "predict)"
)
_MOST = 4_000  # images of each kind whose values are used


class Survey:
    """Sizes, kinds and sampled values of the images of a data set."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # the name of the first image of each kind
        self.partly_read: list[str] = []  # files with bands or pages that are not used
        self._samples: dict[str, list[np.ndarray]] = {}
        self._extremes: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, info: ImageInfo) -> None:
        """Add an image."""
        self.sizes[info.size] += 1
        self.kinds[info.kind] += 1
        self.first.setdefault(info.kind, name)
        if info.partly_read:
            self.partly_read.append(name)
        self.add_values(info)

    def add_values(self, info: ImageInfo) -> None:
        """Add the values of an image whose size and kind were added before."""
        if info.values is not None:
            self._samples.setdefault(info.kind, []).append(info.values)
        if info.extremes is not None:
            self._extremes.setdefault(info.kind, []).append(info.extremes)

    @property
    def deep_images(self) -> int:
        """The number of float images and of those of more than 8 bits."""
        return self.kinds["integer"] + self.kinds["float"]

    @property
    def deep_kinds(self) -> tuple[str, ...]:
        """Which of the kinds "float" and "integer" (of more than 8 bits) the images have."""
        return tuple(kind for kind in ("float", "integer") if self.kinds[kind])

    @property
    def typical_size(self) -> tuple[int, int] | None:
        """Width and height of the image with the median aspect ratio."""
        before = sum(self.sizes.values()) // 2
        for size in sorted(self.sizes, key=lambda size: min(size) / max(size)):
            before -= self.sizes[size]
            if before < 0:
                return size
        return None

    def values(self, kind: str | None = None) -> np.ndarray:
        """The sampled values of float and deep images, or of one kind of them."""
        return _joined([spread(part, _MOST) for part in _of_kind(self._samples, kind)])

    def extremes(self, kind: str | None = None) -> np.ndarray:
        """The extreme values of the decoded float and deep images, or of one kind of them."""
        return _joined(_of_kind(self._extremes, kind))

    def misfit(self, value_range: ValueRange) -> str:
        """Return what is lost where float and deep images are read by the range, "" if little."""
        return misfit(self.values(), value_range, self.extremes())

    def decide(self, where: str) -> ValueRange | None:
        """Return the range for all float and deep images; None where there are none.

        Raises:
            ValueError: float images and integer images need different ranges.
        """
        ranges = {
            kind: decide_range(self.values(kind), self.extremes(kind)) for kind in self._samples
        }
        if len(set(ranges.values())) > 1:
            found = " and ".join(
                f"{kind}s ({named(ranges[kind])}, such as {shown(self.first[kind])})"
                for kind in ranges
            )
            raise ValueError(
                f"{shown(where)} mixes images of {found}: no range of values fits both. Convert "
                f"one kind to the other, or give one range for both: {SET_RANGE}"
            )
        return next(iter(ranges.values()), None)

    def note(self, value_range: ValueRange, *, given: bool) -> str:
        """Return a sentence on how float and deep images are read."""
        total = sum(self.kinds.values())
        if not self.deep_images:
            return (
                f"value_range {named(value_range)} changes nothing: all images that were "
                "read have 8 bits; it is for float images and images of more bits"
            )
        what = "with more than 8 bits" if self.kinds["integer"] else "as floats"
        count = "the" if self.deep_images == total else f"{self.deep_images:,} of {total:,}"
        values, extremes = self.values(), self.extremes()
        text = f"{count} images are stored {what}: "
        if given:
            text += f"value_range {named(value_range)} becomes 0 to 255"
        else:
            low, high = extent(values, extremes)
            text += f"values {low:g} to {high:g} are taken as {named(value_range)}, which becomes "
            text += f"0 to 255; {SET_RANGE}"
        for lost in (clipped(values, value_range, extremes), unused(values, value_range)):
            text += f"; {lost}" if lost else ""
        if self.deep_images < total:
            text += "; the others have 8 bits and stay as they are"
        return text


def apply_value_range(
    source: DataSource, survey: Survey, value_range: Sequence[float] | None = None
) -> DataSource:
    """Return the data set with one range of values for its float and deep images.

    Its notes name the range, and the number of TIFF files with bands or pages that are not used.

    Args:
        source: the data set.
        survey: statistics of its images.
        value_range: the values that become 0 and 255; by default they are decided from the images.
    """
    given = check_range(value_range)
    decided = given or survey.decide(source.name)
    notes = []
    if decided is not None:
        source = source.scaled(decided)
        notes.append(survey.note(decided, given=given is not None))
    if survey.partly_read:
        notes.append(
            f"{len(survey.partly_read):,} TIFF files have further bands or pages, such as "
            f"{shown(survey.partly_read[0])}: the first page is used, as grey or RGB"
        )
    return replace(
        source,
        deep_kinds=survey.deep_kinds,
        typical_size=survey.typical_size,
        notes=(*source.notes, *notes),
    )


def _of_kind(parts: Mapping[str, list[np.ndarray]], kind: str | None) -> list[list[np.ndarray]]:
    return list(parts.values()) if kind is None else [parts.get(kind, [])]


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    return np.concatenate([values for part in parts for values in part] or [np.empty(0)])


def spread(items: Sequence[_T], most: int) -> Sequence[_T]:
    """Return at most ``most`` of the items, evenly spaced; the same items at every call."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
