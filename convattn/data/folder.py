"""Images in folders: one folder per class, or ``train/`` and ``val/`` with one each below."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.classes import ClassNumbers, UnknownClassesError
from convattn.data.images import EXTENSIONS
from convattn.data.layout import (
    Layout,
    check_annotations,
    find_doubt,
    find_layout,
    how_to_go_on,
    is_for_tests,
    looks_unlabelled,
    unwrap,
)
from convattn.data.listing import Level, Listing, by_number, list_images, passed_over, read_level
from convattn.data.scan import check_share, find_broken
from convattn.data.source import BrokenFile, DataSource, FileImages
from convattn.data.split import stratified_split
from convattn.data.survey import Survey, settle
from convattn.names import counted, did_you_mean, listed, natural_key, nfc, shown


def open_folder(
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    max_broken: float = 0.01,
    value_range: Sequence[float] | None = None,
) -> DataSource:
    """Open a folder of images.

    Two layouts: ``PATH/<class>/**/<image>``, of which a fixed, stratified part is held out, or
    ``PATH/train/<class>/**`` with ``PATH/val/<class>/**``. The parts may have any usual name, in
    any case (``Training``, ``train_set``, ``seg_train``; ``valid``, ``dev``, ``Testing``, ...); a
    validation part is preferred to "dev", this to "eval" and "holdout", and these to a test part;
    one without class folders is passed over.
    A folder that holds nothing but one other folder is looked through. Names are compared in
    Unicode's form NFC. Hidden files and folders, and those that systems make for themselves, are
    passed over, links are followed, and endings count in any case. Classes are numbered by name
    in natural order: 2 comes before 10.

    Args:
        path: the folder.
        class_names: number the classes as in this list, which must contain every folder's name;
            this is how a trained model meets new images of its classes, even of one class only.
        val_fraction: the share held out where the folder has no held-out part of its own.
        split_seed: which split that is.
        max_broken: the share of unreadable images that may be skipped before it is an error.
        value_range: of float and deep images, the values that become 0 and 255; by default decided
            from all of them, see `convattn.data.value_range`.

    Returns:
        A `DataSource`; ``broken`` names the images that were skipped, ``notes`` says what was
        decided: which part is held out, and which folders and files were passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is empty, has one class, a class without images, classes in the
            held-out part that are not in training, or too many unreadable images; or it can be
            read in two ways, such as ``part1/`` and ``part2/`` with the same folders in each.
    """
    root = Path(path).expanduser()
    _check_folder(root)
    layout = find_layout(root, class_names or ())
    part = _read_part(layout.train)
    notes = [*layout.notes, *_check_classes(part, layout, class_names)]
    numbers = ClassNumbers(class_names or sorted(set(map(nfc, part.names)), key=natural_key))
    held_out, why = _choose_held_out(layout, numbers)
    survey = Survey()
    train, broken = _label(part, numbers, max_broken, "the model's classes", survey)
    if held_out is None:
        train, val = _split(layout.train, train, val_fraction, split_seed)
    else:
        val, more = _label(held_out, numbers, max_broken, shown(layout.train), survey)
        broken = broken + more
    parts = [part] if held_out is None else [part, held_out]
    notes += [*why, *(note for used in parts for note in used.notes(numbers))]
    if class_names is None or held_out is not None:
        notes += _not_held_out(train, val, numbers)
    notes += passed_over(_listings(parts))
    source = DataSource(
        name=f"folder:{path}",
        class_names=numbers.names,
        train=FileImages(train.paths, train.labels),
        val=FileImages(val.paths, val.labels),
        split_here=held_out is None,
        broken=tuple(broken),
        notes=tuple(notes),
    )
    return settle(source, survey, value_range)


@dataclass(frozen=True)
class _Part:
    """A folder of class folders, and what they hold."""

    folder: Path
    level: Level
    classes: dict[str, Listing]

    @property
    def names(self) -> list[str]:
        """Names of the class folders that hold images."""
        return [name for name, listing in self.classes.items() if listing.images]

    def notes(self, numbers: ClassNumbers) -> list[str]:
        """What was decided about this part."""
        where = shown(self.folder)
        notes = numbers.notes(self.names, where)
        if self.level.images:
            images = counted(len(self.level.images), "image")
            notes.append(f"{images} beside the class folders in {where} passed over")
        return notes


@dataclass(frozen=True)
class _Labelled:
    """Images with the number of the class of each."""

    paths: list[str]
    labels: list[int]


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


def _read_part(folder: Path) -> _Part:
    level = read_level(folder)
    return _Part(folder, level, {name: list_images(folder / name) for name in level.folders})


def _listings(parts: Sequence[_Part]) -> list[Listing]:
    """What lies in the parts: in their class folders, and beside these."""
    below = [listing for part in parts for listing in part.classes.values()]
    return [*below, *(Listing(system=Counter(part.level.system)) for part in parts)]


def _check_classes(part: _Part, layout: Layout, given: Sequence[str] | None) -> list[str]:
    """Raise `ValueError` unless the part holds classes; return what is to be said of them."""
    if not part.classes:
        raise ValueError(
            f"{shown(part.folder)} holds {_no_classes(part.level)}; expected one folder per class, "
            f"such as {shown(part.folder / 'cat' / '1.jpg')} and "
            f"{shown(part.folder / 'dog' / '1.jpg')}"
        )
    if given is not None and None not in ClassNumbers(given).match(part.names).values():
        return _check_empty(part, may_be=bool(part.names))
    check_annotations(part.folder, list(part.classes))
    doubt = find_doubt(part.folder, part.classes)
    if doubt and not layout.is_part:
        raise ValueError(
            f"{shown(part.folder)} can be read in two ways: {doubt}. {how_to_go_on(part.folder)}"
        )
    notes = _check_empty(part, may_be=given is not None)
    if given is None and len(set(map(nfc, part.names))) < 2:
        raise ValueError(
            f"{shown(part.folder)} has only one class folder, {listed(part.names)}; a classifier "
            "needs two or more"
        )
    if doubt:
        notes.append(f"the folders in {shown(part.folder)} are taken for classes, though {doubt}")
    return notes


def _check_empty(part: _Part, *, may_be: bool) -> list[str]:
    empty = {name: listing for name, listing in part.classes.items() if not listing.images}
    if not empty:
        return []
    folders = ", ".join(shown(part.folder / name) for name in list(empty)[:10])
    others = sum((listing.others for listing in empty.values()), Counter[str]())
    found = f"no images in {folders}" + (f" (but {by_number(others)})" if others else "")
    if may_be:
        return [found]
    raise ValueError(
        f"{found}: looked for {' '.join(sorted(EXTENSIONS))}; add images or remove the folder"
    )


def _no_classes(level: Level) -> str:
    if level.images:
        return f"{counted(len(level.images), 'image')} but no class folders"
    return "no class folders" + ("" if level.others else " (it is empty)")


def _choose_held_out(layout: Layout, numbers: ClassNumbers) -> tuple[_Part | None, list[str]]:
    """The first of the held-out folders that holds images of the classes, and what to say."""
    chosen, notes = None, []
    for folder in layout.held_out:
        name = shown(folder.name)
        if chosen is not None:
            notes.append(f"{name} is not used, as {shown(chosen.folder.name)} is held out")
            continue
        part = _read_part(unwrap(folder, numbers.names))
        if why := _no_use(part, numbers):
            notes.append(f"{name} is passed over: {why}")
            continue
        chosen = part
        if is_for_tests(folder.name):
            notes.append(f"{name} is held out in place of a validation part, to choose the epoch")
    return chosen, notes


def _no_use(part: _Part, numbers: ClassNumbers) -> str:
    """Why a held-out part cannot be used, "" if it can."""
    if not part.classes:
        return f"it holds {_no_classes(part.level)}"
    if not part.names:
        return "its folders hold no images"
    unknown = list(numbers.match(part.names).values()) == [None]
    if unknown and looks_unlabelled(part.names[0], numbers.names):
        return f"its only folder, {listed(part.names)}, is none of the classes"
    return ""


def _label(
    part: _Part, numbers: ClassNumbers, max_broken: float, where: str, survey: Survey
) -> tuple[_Labelled, list[BrokenFile]]:
    """The readable images of a part with their labels, and what had to be left out."""
    found = numbers.match(part.names)
    unknown = [name for name, number in found.items() if number is None]
    if unknown:
        raise UnknownClassesError(
            f"{shown(part.folder)} has classes that are not in {where}: {listed(unknown)}"
            f"{did_you_mean(nfc(unknown[0]), numbers.names)} Known are {listed(numbers.names)}"
        )
    paths = [path for name in found for path in part.classes[name].images]
    broken = find_broken(paths, survey)
    check_share(broken, len(paths), max_broken, str(part.folder))
    bad = {file.path for file in broken}
    kept = [(p, n) for name, n in found.items() for p in part.classes[name].images if p not in bad]
    return _Labelled([path for path, _ in kept], [number or 0 for _, number in kept]), broken


def _not_held_out(train: _Labelled, val: _Labelled, numbers: ClassNumbers) -> list[str]:
    missing = [numbers.names[n] for n in sorted(set(train.labels) - set(val.labels))]
    return [f"no image is held out of {listed(missing)}"] if missing else []


def _split(
    root: Path, images: _Labelled, fraction: float, seed: int
) -> tuple[_Labelled, _Labelled]:
    parts = stratified_split(images.labels, fraction=fraction, seed=seed)
    if not parts[1]:
        raise ValueError(
            f"{shown(root)} has one image per class, of which none can be held out; add images, or "
            "put some apart in train/ and val/"
        )
    paths, labels = images.paths, images.labels
    train, val = (_Labelled([paths[i] for i in p], [labels[i] for i in p]) for p in parts)
    return train, val
