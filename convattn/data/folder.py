"""Images in folders: one folder per class, or ``train/`` and ``val/`` with one each below."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from convattn.data.images import EXTENSIONS, is_image_file
from convattn.data.scan import check_share, find_broken
from convattn.data.source import BrokenFile, DataSource, FileImages
from convattn.data.split import stratified_split
from convattn.data.survey import Survey, settle

VAL_NAMES = ("val", "valid", "validation", "test")


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
    ``PATH/train/<class>/**`` with ``PATH/val/<class>/**`` (``valid``, ``validation`` and ``test``
    are understood too). Hidden files and folders are passed over, links are followed, and endings
    count in any case. Classes are numbered by name in natural order: 2 comes before 10.

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
        A `DataSource`; ``broken`` names the images that were skipped.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is empty, has one class, a class without images, classes in the
            held-out part that are not in training, or too many unreadable images.
    """
    root = Path(path).expanduser()
    _check_folder(root)
    train_dir, val_dir = _layout(root)
    names = _class_folders(train_dir)
    if class_names is None and len(names) < 2:
        raise ValueError(
            f"{train_dir} has only one class folder, {names[0]!r}; a classifier needs two or more"
        )
    known = list(class_names) if class_names is not None else names
    _check_known(names, known, train_dir, "the model's classes")
    survey = Survey()
    train_paths, train_labels, broken = _collect(train_dir, names, known, max_broken, survey)
    if val_dir is None:
        train, val = _split(train_dir, train_paths, train_labels, val_fraction, split_seed)
    else:
        val_names = _class_folders(val_dir)
        _check_known(val_names, known, val_dir, str(train_dir))
        val_paths, val_labels, val_broken = _collect(val_dir, val_names, known, max_broken, survey)
        train, val = FileImages(train_paths, train_labels), FileImages(val_paths, val_labels)
        broken = broken + val_broken
    source = DataSource(
        name=f"folder:{path}",
        class_names=tuple(known),
        train=train,
        val=val,
        split_here=val_dir is None,
        broken=tuple(broken),
    )
    return settle(source, survey, value_range)


def find_images(folder: str | Path) -> list[str]:
    """Return the image files in ``folder`` and below it, in natural order."""
    found: list[str] = []
    seen: set[str] = set()  # links may lead back to where one came from
    for parent, children, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            children.clear()
            continue
        seen.add(place)
        children[:] = sorted((c for c in children if not c.startswith(".")), key=natural_key)
        found += [
            os.path.join(parent, name)
            for name in sorted(files, key=natural_key)
            if is_image_file(Path(name))
        ]
    return found


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p] + [(2, 0, name)]


def _check_folder(root: Path) -> None:
    if root.is_file():
        raise ValueError(f"{root} is a file; folder:PATH needs a folder with one folder per class")
    if not root.is_dir():
        siblings = (
            [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        )
        near = difflib.get_close_matches(root.name, siblings, n=1)
        hint = f"; did you mean {root.parent / near[0]}?" if near else ""
        raise FileNotFoundError(f"there is no folder {root}{hint}")


def _layout(root: Path) -> tuple[Path, Path | None]:
    """Where to learn from and, if it is a place of its own, where the held-out images are."""
    train = root / "train"
    if not (train.is_dir() and any(_folders(train))):
        return root, None
    held_out = [root / name for name in VAL_NAMES if (root / name).is_dir()]
    return train, held_out[0] if held_out else None


def _folders(folder: Path) -> list[str]:
    names = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(names, key=natural_key)


def _class_folders(folder: Path) -> list[str]:
    names = _folders(folder)
    if names:
        return names
    images = sum(is_image_file(p) for p in folder.iterdir())
    found = f"{images} images but no class folders" if images else "no class folders: it is empty"
    raise ValueError(
        f"{folder} holds {found}; expected one folder per class, such as "
        f"{folder / 'cat' / '1.jpg'} and {folder / 'dog' / '1.jpg'}"
    )


def _check_known(names: list[str], known: Sequence[str], folder: Path, where: str) -> None:
    unknown = [name for name in names if name not in set(known)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{folder} has classes that are not in {where}: {_listed(unknown)}{hint} "
            f"Known are {_listed(known)}"
        )


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _collect(
    folder: Path, names: list[str], known: Sequence[str], max_broken: float, survey: Survey
) -> tuple[list[str], list[int], list[BrokenFile]]:
    """The readable images of every class folder, their labels, and what had to be left out."""
    number = {name: i for i, name in enumerate(known)}
    files = {name: find_images(folder / name) for name in names}
    empty = [str(folder / name) for name in names if not files[name]]
    if empty:
        raise ValueError(
            f"no images in {', '.join(empty[:10])}: looked for {' '.join(sorted(EXTENSIONS))}; "
            "add images or remove the folder"
        )
    paths = [path for name in names for path in files[name]]
    broken = find_broken(paths, survey)
    check_share(broken, len(paths), max_broken, str(folder))
    bad = {file.path for file in broken}
    kept = [(p, number[name]) for name in names for p in files[name] if p not in bad]
    return [path for path, _ in kept], [label for _, label in kept], broken


def _split(
    root: Path, paths: list[str], labels: list[int], fraction: float, seed: int
) -> tuple[FileImages, FileImages]:
    parts = stratified_split(labels, fraction=fraction, seed=seed)
    if not parts[1]:
        raise ValueError(
            f"{root} has one image per class, of which none can be held out; add images, or put "
            "some apart in train/ and val/"
        )
    train, val = (FileImages([paths[i] for i in p], [labels[i] for i in p]) for p in parts)
    return train, val
