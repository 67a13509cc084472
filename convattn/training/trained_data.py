"""Data for a trained model, opened with the classes and the range of values of its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convattn.data import (
    DataSource,
    UnknownClassesError,
    ValueRange,
    listed,
    open_dataset,
    shown,
)
from convattn.data.value_range import named
from convattn.runs.card import ModelCard
from convattn.runs.data_record import DataRecord
from convattn.runs.folder import RunFolder
from convattn.training.config import RunConfig, path_of

# The range with which versions without `ModelCard.value_range` read integers of more than 8 bits.
EARLIER_RANGE: ValueRange = (0.0, 65535.0)

_NO_RECORD = (
    "the run has no data.json, as convattn 0.1 wrote none: the held-out images are the same "
    "as at its start only if no image was added or removed since then"
)


def open_for(card: ModelCard, name: str, **options: Any) -> DataSource:
    """Open data for a trained model.

    Classes have the numbers of the card. Float and deep images are read with the ``value_range``
    of the options, or else of the card. A card without a range is from a version that stored none,
    or from a training on 8-bit images: integers are then read as 0 to 65535.

    Args:
        card: the model card.
        name: as for `open_dataset`.
        **options: further arguments of `open_dataset`.

    Raises:
        ValueError: see `open_dataset`; a folder has a class that is not in the card.
    """
    return _open_numbered(name, card.class_names, card, options)


def _open_numbered(
    name: str, names: tuple[str, ...], card: ModelCard | None, options: dict[str, Any]
) -> DataSource:
    """Open data with these classes, and with the range of values of a card if there is one."""
    numbered = (names or None) if path_of(name) else None
    scale = options.pop("value_range", None) or (card.value_range if card else None)
    source = open_dataset(name, class_names=numbered, value_range=scale, **options)
    if card is not None and scale is None and "integer" in source.deep_kinds:
        return source.scaled(EARLIER_RANGE)
    return source


def open_again(
    name: str,
    run: RunFolder,
    card: ModelCard | None,
    record: DataRecord | None,
    **options: Any,
) -> DataSource:
    """Open the data of a resumed run, with only its training and held-out images.

    Args:
        name: as for `open_dataset`; another folder if the folder of the run was moved.
        run: the run's folder, for messages.
        card: the card of the checkpoint; None if the run starts again without a checkpoint.
        record: the record of the data; None if convattn 0.1 wrote the run.
        **options: further arguments of `open_dataset`.

    Raises:
        ValueError: see `open_for` and `DataRecord.restore`; the classes are not those of the run;
            a folder of another name is not the data of the run.
    """
    if record is not None:
        options |= record.options()
    names = card.class_names if card else record.class_names if record else ()
    try:
        source = _open_numbered(name, names, card, options)
    except UnknownClassesError as error:
        raise ValueError(_other_classes(str(error), run)) from error
    _check_classes(names, source, run)
    if record is None:
        is_split = card is not None and source.split_here
        return replace(source, notes=(*source.notes, _NO_RECORD)) if is_split else source
    if not is_same(name, record.name):
        record.check_moved(source)
    source = record.restore(source)
    _check_classes(names, source, run)  # all images of a class may have been added later
    return source


def _check_classes(names: Sequence[str], source: DataSource, run: RunFolder) -> None:
    """Raise `ValueError` unless the classes are those of the run, if it has any."""
    if names and (changed := _changed(names, source)):
        raise ValueError(_other_classes(f"{shown(source.name)}: {changed}", run))


def is_same(name: str, other: str) -> bool:
    """Return whether two names denote the same data set, also by different paths of a folder."""
    first, second = path_of(name), path_of(other)
    if first is None or second is None or name.partition(":")[0] != other.partition(":")[0]:
        return name == other
    return first.resolve() == second.resolve()


def _other_classes(found: str, run: RunFolder) -> str:
    return (
        f"{found}. A resumed run keeps its classes; for other classes, start a new run with "
        f"init={shown(run.path)}"
    )


def _changed(before: Sequence[str], source: DataSource) -> str:
    """Return how the classes of the data differ from those of the run, "" if they are equal."""
    now = source.class_names
    if sorted(before) != sorted(now):
        return "the run has other classes: " + difference(before, now)
    for number, (old, new) in enumerate(zip(before, now, strict=True)):
        if old != new:
            return f"class number {number} is {old!r} in the run and {new!r} in the data"
    if not source.name.startswith("folder:"):
        return ""
    present = {source.train.label(index) for index in range(len(source.train))}
    missing = [name for number, name in enumerate(now) if number not in present]
    return f"the run has classes without a training image: {listed(missing)}" if missing else ""


def difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Return a text on the classes that only the trained model or only the data has."""
    known, given = set(before), set(now)
    parts = [f"the trained model has {len(before)} classes, the data has {len(now)}"]
    if lost := [name for name in before if name not in given]:
        parts.append(f"only the model has {listed(lost, 5)}")
    if new := [name for name in now if name not in known]:
        parts.append(f"only the data has {listed(new, 5)}")
    return "; ".join(parts)


def held_out_part(source: DataSource, config: RunConfig) -> str:
    """Return which part of the data is held out, as the first lines of a run name it."""
    if source.split_here:
        share = len(source.val) / (len(source.train) + len(source.val))
        seed = f", split_seed={config.split_seed}" if path_of(source.name) else ""
        return f"{share:.0%} of the images{seed}"
    if config.targets != "classes":
        return "the data set's own part"
    folder = source.relative_name(source.val, 0).split("/")[0] if source.root else ""
    return shown(folder or config.val_split)


def range_notes(card: ModelCard, value_range: ValueRange | None) -> list[str]:
    """Return a note if images are read with a range of values but the card has none."""
    if card.value_range is not None or value_range is None:
        return []
    return [f"{no_range(card)}; {named(value_range)} is used"]


def other_range(card: ModelCard, source: DataSource) -> str:
    """Return a clause if the weights and the data have different ranges of values, else ""."""
    if card.value_range == source.value_range:
        return ""
    before = f"with value_range {named(card.value_range)}" if card.value_range else "without one"
    now = f"with value_range {named(source.value_range)}" if source.value_range else "without one"
    return f"; the data is read {now}, the weights were trained {before}"


def no_range(card: ModelCard) -> str:
    """Return the reason why a card has no range of values."""
    return (
        f"the checkpoint (convattn {card.version}) has no value_range: the training was on 8-bit "
        "images, or by a version that scaled each image by itself and read integers of more "
        f"than 8 bits as {named(EARLIER_RANGE)}"
    )
