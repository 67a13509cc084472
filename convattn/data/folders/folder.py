"""Images in folders: one folder per class, or ``train/`` and ``val/`` with one each below."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from convattn.data.folders.classes import ClassNumbers
from convattn.data.folders.layout import (
    Layout,
    advise,
    check_annotations,
    find_ambiguity,
    find_layout,
    is_test_part,
    looks_unlabelled,
    unwrap,
)
from convattn.data.folders.listing import Level, format_counts, passed_over
from convattn.data.folders.parts import (
    LabelledFiles,
    Part,
    PartReader,
    read_part,
    split_files,
    split_files_as_before,
)
from convattn.data.images import EXTENSIONS
from convattn.data.source import DataSource, FileImages
from convattn.data.survey import apply_value_range
from convattn.names import counted, listed, natural_key, nfc, shown


def open_folder(
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    max_broken: float = 0.01,
    held_out: Collection[str] | None = None,
    known_broken: Collection[str] = (),
    check: bool = True,
    value_range: Sequence[float] | None = None,
) -> DataSource:
    """Open a folder of images.

    There are two layouts: ``PATH/<class>/**/<image>``, of which a fixed, stratified part is held
    out, and ``PATH/train/<class>/**`` with ``PATH/val/<class>/**``. The parts may have any usual
    name, in any case (``Training``, ``train_set``, ``seg_train``; ``valid``, ``dev``, ``Testing``,
    ...). Of several parts that can be held out, the first of these is: validation, "dev", "eval"
    and "holdout", test; a part without class folders is passed over.
    A folder that holds only one other folder stands for that folder. Names are compared in
    Unicode's form NFC. Hidden files and folders, and those that operating systems make, are passed
    over; links are followed; file extensions are compared without regard to case. Classes are
    numbered by name in natural order: 2 comes before 10.

    Args:
        path: the folder.
        class_names: number the classes as in this list, which must contain every folder's name;
            this is how a trained model meets new images of its classes, even of one class only.
        val_fraction: the share held out where the folder has no held-out part of its own.
        split_seed: seed of that split.
        max_broken: the share of unreadable images that may be left out before it is an error.
        held_out: relative names of the images to hold out, as `DataSource.relative_name` returns
            them; all other images are learnt from, whatever was added since. By default a new
            split is made.
        known_broken: relative names of images that are left out without being read, as they could
            not be read when ``held_out`` was recorded.
        check: whether to decode all images, of large folders the headers only, to find the
            unreadable ones; else only headers are read.
        value_range: of float and deep images, the values that become 0 and 255; by default decided
            from all of them, see `convattn.data.value_range`.

    Returns:
        A `DataSource`; ``broken`` names the images that were left out, ``notes`` says what was
        decided: which part is held out, and which folders and files were passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is empty, has one class, a class without images, classes in the
            held-out part that are not in training, or too many unreadable images; or all images of
            the held-out part are links to images to learn from; or it holds none
            of the images in ``held_out``; or it can be read in two ways, such as ``part1/`` and
            ``part2/`` with the same folders in each.
    """
    root = Path(path).expanduser()
    _check_folder(root)
    layout = find_layout(root, class_names or ())
    part = read_part(layout.train)
    notes = [*layout.notes, *_check_classes(part, layout, class_names)]
    numbers = ClassNumbers(class_names or sorted(set(map(nfc, part.names)), key=natural_key))
    reader = PartReader(root, max_broken, known_broken, check)
    train, broken = reader.read(part, numbers, "the model's classes")
    val_part, why = _choose_held_out(layout, numbers) if held_out is None else (None, [])
    notes += why
    if val_part is not None:
        val, more = reader.read(val_part, numbers, shown(layout.train))
        broken += more
    elif held_out is None:
        train, val = split_files(train, val_fraction, split_seed, layout.train)
    else:
        train, val, changes = split_files_as_before(train, broken, held_out, reader)
        notes += [*_unused_parts(layout), *changes]
    notes += _check_both(train, val, reader, is_error=val_part is not None and class_names is None)
    parts = [part] if val_part is None else [part, val_part]
    notes += [note for used in parts for note in used.notes(numbers)]
    if class_names is None or val_part is not None:
        folder = shown(val_part.folder.name) if val_part else ""
        notes += _classes_not_held_out(train, val, numbers, folder)
    notes += passed_over([listing for used in parts for listing in used.listings])
    source = DataSource(
        name=f"folder:{path}",
        class_names=numbers.names,
        train=FileImages(train.paths, train.labels),
        val=FileImages(val.paths, val.labels),
        split_here=val_part is None,
        broken=tuple(broken),
        root=str(root),
        notes=tuple(notes),
    )
    return apply_value_range(source, reader.survey, value_range)


def _check_folder(root: Path) -> None:
    if root.is_file():
        raise ValueError(
            f"{shown(root)} is a file; folder:PATH needs a folder with one folder per class"
        )
    if not root.is_dir():
        siblings = (
            [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        )
        near = difflib.get_close_matches(root.name, siblings, n=1)
        hint = f"; did you mean {shown(root.parent / near[0])}?" if near else ""
        raise FileNotFoundError(f"there is no folder {shown(root)}{hint}")


def _check_classes(part: Part, layout: Layout, given: Sequence[str] | None) -> list[str]:
    """Return notes on the class folders; raise `ValueError` if they cannot be classes."""
    if not part.classes:
        raise ValueError(
            f"{shown(part.folder)} holds {_no_classes(part.level)}; expected one folder per class, "
            f"such as {shown(part.folder / 'cat' / '1.jpg')} and "
            f"{shown(part.folder / 'dog' / '1.jpg')}"
        )
    if given is not None and None not in ClassNumbers(given).match(part.names).values():
        return _check_empty(part, allowed=bool(part.names))
    check_annotations(part.folder, list(part.classes))
    ambiguity = find_ambiguity(part.folder, part.classes)
    if ambiguity and not layout.is_part:
        raise ValueError(
            f"{shown(part.folder)} can be read in two ways: {ambiguity}. {advise(part.folder)}"
        )
    notes = _check_empty(part, allowed=given is not None)
    if given is None and len(set(map(nfc, part.names))) < 2:
        raise ValueError(
            f"{shown(part.folder)} has only one class folder, {listed(part.names)}; a classifier "
            "needs two or more"
        )
    if ambiguity:
        notes.append(f"the folders in {shown(part.folder)} are read as classes, though {ambiguity}")
    return notes


def _check_empty(part: Part, *, allowed: bool) -> list[str]:
    empty = {name: listing for name, listing in part.classes.items() if not listing.images}
    if not empty:
        return []
    folders = ", ".join(shown(part.folder / name) for name in list(empty)[:10])
    others = sum((listing.others for listing in empty.values()), Counter[str]())
    found = f"no images in {folders}" + (f" (but {format_counts(others)})" if others else "")
    if allowed:
        return [found]
    raise ValueError(
        f"{found}: looked for {' '.join(sorted(EXTENSIONS))}; add images or remove the folder"
    )


def _no_classes(level: Level) -> str:
    if level.images:
        return f"{counted(len(level.images), 'image')} but no class folders"
    return "no class folders" + ("" if level.others else " (it is empty)")


def _choose_held_out(layout: Layout, numbers: ClassNumbers) -> tuple[Part | None, list[str]]:
    """Return the first held-out folder that holds images of the classes, and notes."""
    chosen, notes = None, []
    for folder in layout.held_out:
        name = shown(folder.name)
        if chosen is not None:
            notes.append(f"{name} is not used, as {shown(chosen.folder.name)} is held out")
            continue
        part = read_part(unwrap(folder, numbers.names))
        if why := _why_unusable(part, numbers):
            notes.append(f"{name} is passed over: {why}")
            continue
        chosen = part
        if is_test_part(folder.name):
            notes.append(
                f"{name} is held out in place of a validation part: the best epoch is chosen on it"
            )
    return chosen, notes


def _why_unusable(part: Part, numbers: ClassNumbers) -> str:
    """Return why a held-out part cannot be used, "" if it can be."""
    if not part.classes:
        return f"it holds {_no_classes(part.level)}"
    if not part.names:
        return "its folders hold no images"
    unknown = list(numbers.match(part.names).values()) == [None]
    if unknown and looks_unlabelled(part.names[0], numbers.names):
        return f"its only folder, {listed(part.names)}, is none of the classes"
    return ""


def _check_both(
    train: LabelledFiles, val: LabelledFiles, reader: PartReader, *, is_error: bool
) -> list[str]:
    """Return a sentence on files that are learnt from and held out, by links.

    Raises:
        ValueError: all held-out files are also learnt from, and ``is_error`` is set.
    """
    learnt = set(map(_file_number, train.paths)) - {None}
    both = [reader.name(path) for path in val.paths if _file_number(path) in learnt]
    if not both:
        return []
    if is_error and len(both) == len(val.paths):
        raise ValueError(
            f"all {len(both):,} held-out images in {shown(reader.root)} are images to learn from "
            f"too, by a link, such as {listed(both, 1)}: hold out other images, or remove the link "
            "to let a part of the images be held out"
        )
    are = "is an image" if len(both) == 1 else "are images"
    images = counted(len(val.paths), "held-out image")
    return [f"{len(both):,} of {images} {are} to learn from too, by a link: {listed(both, 3)}"]


def _file_number(path: str) -> tuple[int, int] | None:
    """Return what is the same for all links to a file, None where the file system has no number."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _unused_parts(layout: Layout) -> list[str]:
    """Return a sentence on each part that could be held out, where the split is given."""
    return [
        f"{shown(folder.name)} is not used: the images that were held out of "
        f"{shown(layout.train.name)} stay held out"
        for folder in layout.held_out
    ]


def _classes_not_held_out(
    train: LabelledFiles, val: LabelledFiles, numbers: ClassNumbers, folder: str
) -> list[str]:
    missing = [numbers.names[n] for n in sorted(set(train.labels) - set(val.labels))]
    said = f"{folder} has no image" if folder else "no image is held out"
    return [f"{said} of {listed(missing)}"] if missing else []
