"""Data sets that timm's readers open: torchvision's own, Hugging Face's, tar files, folders."""

from __future__ import annotations

import contextlib
import difflib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from timm.data import create_dataset

from convattn.data.depth import is_deep
from convattn.data.folders.classes import ClassNumbers
from convattn.data.images import (
    SCALED_BY_ITSELF,
    BrokenImageError,
    ImageInfo,
    image_info,
    to_8bit,
)
from convattn.data.reasons import reason
from convattn.data.source import DataSource, ImageSet
from convattn.data.survey import Survey, apply_value_range, spread
from convattn.data.value_range import ValueRange
from convattn.names import did_you_mean, first_of, listed, nfc, shown
from convattn.progress import Progress

TORCH_NAMES = (
    "cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", "inaturalist",
    "places365", "imagenet", "image_folder",
)  # fmt: skip
_STREAMS = ("hfids", "tfds", "wds")
_SURVEYED = 100  # images of each part that are read for the range of values and the shape
_T = TypeVar("_T")
_NOT_MIRRORED = ("mnist", "kmnist", "qmnist", "svhn")


class ReaderImages(ImageSet):
    """A data set of timm or torchvision that is indexed by number.

    Args:
        dataset: the data set.
        numbers: the class that each number of ``dataset`` means; by default that number.
        value_range: of float and deep images, the values that become 0 and 255.
    """

    def __init__(
        self,
        dataset: Any,
        numbers: Mapping[int, int] | None = None,
        value_range: ValueRange | None = None,
    ) -> None:
        self._dataset = dataset
        self._numbers = numbers or {}
        self._value_range = value_range
        self._labels = getattr(dataset, "targets", None)

    def __len__(self) -> int:
        return len(self._dataset)

    def image(self, index: int) -> Image.Image:
        """Read the image."""
        return self._decoded(index, self._to_8bit)

    def info(self, index: int) -> ImageInfo:
        """Return size and kind of the image."""
        return self._decoded(index, image_info)

    def scaled(self, value_range: ValueRange | None) -> ReaderImages:
        """Return the same images, read with ``value_range``."""
        return ReaderImages(self._dataset, self._numbers, value_range)

    def _to_8bit(self, image: Image.Image) -> Image.Image:
        if self._value_range is None and is_deep(image):
            warnings.warn(SCALED_BY_ITSELF, stacklevel=2)
        return to_8bit(image, self._value_range)

    def _decoded(self, index: int, decode: Callable[[Image.Image], _T]) -> _T:
        try:
            return decode(_open(self._dataset, index))
        except Exception as error:  # the readers hand on whatever their decoder raises
            path = self.path(index)
            raise BrokenImageError(path or f"number {index}", reason(path, error)) from error

    def label(self, index: int) -> int:
        """Return the class number; raise `ValueError` if the data set has no name for it."""
        if self._labels is None:
            self._labels = _read_labels(self._dataset)
        label = int(self._labels[index])
        if self._numbers and label not in self._numbers:
            image = shown(self.path(index)) or f"number {index}"
            known = first_of([str(number) for number in self._numbers])
            raise ValueError(
                f"the image {image} has the class {label}, but the data set names only {known}"
            )
        return self._numbers.get(label, label)

    def path(self, index: int) -> str:
        """Return the file's path where the reader knows one."""
        reader = getattr(self._dataset, "reader", None)
        if reader is None:
            return ""
        return str(reader.filename(index, absolute=True) or "")


def open_timm(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    train_split: str = "train",
    val_split: str = "validation",
    value_range: Sequence[float] | None = None,
) -> DataSource:
    """Open a data set by timm's name for it, such as "torch/cifar10" or "hfds/uoft-cs/cifar10".

    Args:
        name: as timm's ``create_dataset`` takes it; an empty prefix reads a folder or tar file at
            ``root``.
        root: where it is stored; by default ``~/.cache/convattn/<name>`` for torchvision's sets.
        download: whether to download the data set if it is not there.
        train_split: name of the part to learn from.
        val_split: name of the part held out.
        value_range: of float and deep images, the values that become 0 and 255; by default decided
            from a sample of the images.

    Returns:
        A `DataSource`.

    Raises:
        ValueError: the name is unknown, or is that of a stream without random access; or the
            held-out part has classes that are not in training, or holds the training images.
        FileNotFoundError: the data is not at ``root`` and ``download`` is off.
    """
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix in _STREAMS:
        raise ValueError(
            f"timm:{name} is a stream without random access, which training here needs; "
            "use timm:hfds/NAME or folder:PATH instead"
        )
    if prefix == "torch":
        _check_torch_name(rest)
    where = Path(root).expanduser() if root else _default_root(prefix, rest)
    parts = [_create(name, where, split, download) for split in (train_split, val_split)]
    if prefix not in ("torch", "hfds") or rest.lower() == "image_folder":
        _check_disjoint(name, parts, (train_split, val_split))
    own = [_own_names(part) for part in parts]
    names = [list(part.values()) for part in own]
    if names[0] and len(set(names[0])) == len(names[0]):
        classes = ClassNumbers(list(dict.fromkeys(map(nfc, names[0]))))
    else:  # two classes have one name, as "crane" in ImageNet
        classes, own, names = ClassNumbers(names[0] or _number_names(parts[0])), [{}, {}], [[], []]
    train = ReaderImages(parts[0], _numbers(classes, own[0], train_split))
    val = ReaderImages(parts[1], _numbers(classes, own[1], val_split))
    source = DataSource(
        name=f"timm:{name}",
        class_names=classes.names,
        train=train,
        val=val,
        root=str(where or ""),
        hflip=not any(word in name.lower() for word in _NOT_MIRRORED),
        notes=(*classes.notes(names[0], train_split), *classes.notes(names[1], val_split)),
    )
    source = apply_value_range(source, _survey(train, val), value_range)
    return replace(source, in_chans=1 if source.train.image(0).mode == "L" else 3)


def _open(dataset: Any, index: int) -> Image.Image:
    """Return the image; a file is opened and not decoded yet.

    A data set of timm replaces an image that cannot be opened by another one, so that its reader is
    used instead.
    """
    reader = getattr(dataset, "reader", None)
    return dataset[index][0] if reader is None else Image.open(reader[index][0])


def _survey(*parts: ReaderImages) -> Survey:
    found = Survey()
    for part in parts:
        for index in spread(range(len(part)), _SURVEYED):
            with contextlib.suppress(BrokenImageError):  # reported when the image is read
                found.add(part.path(index) or f"number {index}", part.info(index))
    return found


def _create(name: str, root: Path | None, split: str, download: bool) -> Any:
    if root is not None and download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        dataset = create_dataset(
            name,
            root=None if root is None else str(root),
            split=split,
            download=download,
            input_img_mode="",
        )
        if hasattr(dataset, "loader"):  # torchvision's loader clips deep images to 8 bits
            dataset.loader = Image.open
        return dataset
    except ImportError as error:
        raise ImportError(
            f"timm:{name} needs {error.name}, which is not installed: pip install {error.name}"
        ) from error
    except (RuntimeError, FileNotFoundError, AssertionError) as error:
        if download:
            raise
        raise FileNotFoundError(
            f"timm:{name} is not in {shown(root)} ({_first_line(error)}); "
            "add download=true to download it, or root=PATH if it is elsewhere"
        ) from error


def _check_disjoint(name: str, parts: Sequence[Any], splits: Sequence[str]) -> None:
    """Raise if one part holds the other: timm reads all of a folder that lacks the part's name."""
    roots = [Path(getattr(part, "reader", part).root).resolve() for part in parts]
    for place, split, other in zip(roots, splits, reversed(roots), strict=True):
        if other.is_relative_to(place):
            raise ValueError(
                f"timm:{name} finds no part {split!r} in {shown(place)}, and reads all images "
                "there instead, those of the other part too; name the parts with train_split= and "
                f"val_split=, or use folder:{shown(place)}"
            )


def _check_torch_name(name: str) -> None:
    if name.lower() not in TORCH_NAMES:
        near = difflib.get_close_matches(name.lower(), TORCH_NAMES, n=1)
        hint = f"; did you mean 'torch/{near[0]}'?" if near else ""
        raise ValueError(
            f"torchvision has no data set {name!r} that timm opens{hint} "
            f"Known: {', '.join(TORCH_NAMES)}"
        )


def _default_root(prefix: str, name: str) -> Path | None:
    if prefix == "hfds":
        return None  # Hugging Face has its own cache
    base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return base / "convattn" / name.lower()


def _own_names(dataset: Any) -> dict[int, str]:
    """Return the data set's own class names by its own numbers, in the order of the numbers."""
    if hasattr(dataset, "classes"):
        return {number: str(name) for number, name in enumerate(dataset.classes)}
    numbers = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
    return {int(numbers[name]): str(name) for name in sorted(numbers, key=lambda n: numbers[n])}


def _number_names(dataset: Any) -> list[str]:
    """Return the numbers as names, for classes without names."""
    return [str(number) for number in range(max(_read_labels(dataset)) + 1)]


def _numbers(classes: ClassNumbers, own: Mapping[int, str], split: str) -> dict[int, int]:
    """Return the class of each number of a part, which may lack classes and number its own."""
    found = classes.match(own.values())
    if unknown := [name for name, number in found.items() if number is None]:
        raise ValueError(
            f"the part {split} has classes that are not in training: {listed(unknown)}"
            f"{did_you_mean(unknown[0], classes.names)} Known are {listed(classes.names)}"
        )
    return {number: found[name] or 0 for number, name in own.items()}


def _read_labels(dataset: Any) -> Sequence[int]:
    reader = getattr(dataset, "reader", None)
    if reader is not None and hasattr(reader, "iter_targets"):
        return [int(target) for target in reader.iter_targets()]
    labels = []
    with Progress("reading labels", len(dataset)) as progress:
        for index in range(len(dataset)):
            labels.append(int(dataset[index][1]))
            progress.advance()
    return labels


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or "no such folder"
