"""The interface of a data set: its images, their targets, and hints for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from convattn.data.images import load_image
from convattn.data.problems import Problem
from convattn.data.value_range import ValueRange, named
from convattn.names import nfc

# What a target is: the number of the image's class; objects with boxes; objects with boxes and
# masks; a class for each pixel.
Targets = Literal["classes", "boxes", "instances", "segments"]


class ImageSet:
    """Numbered 8-bit PIL images, each with a target; without transforms and random numbers."""

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` upright, grey or RGB; raise `BrokenImageError` if unreadable."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the number of the class of image ``index``."""
        raise NotImplementedError

    def target(self, index: int) -> Any:
        """Return what a model should predict for image ``index``; by default its class number."""
        return self.label(index)

    def path(self, index: int) -> str:
        """Return the path of the file of image ``index``, "" if the image has no file."""
        return ""

    def scaled(self, value_range: ValueRange | None) -> ImageSet:
        """Return the same images, those of more than 8 bits mapped from ``value_range`` to 0..255.

        Raises:
            NotImplementedError: the class does not define this method.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no method scaled(value_range): return self there if all "
            "images have 8 bits, or else the same images read with value_range"
        )


class FileImages(ImageSet):
    """Image files with a class number each.

    Args:
        paths: the files.
        labels: the class number of each file.
        value_range: see `load_image`.
    """

    def __init__(
        self,
        paths: Sequence[str] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        value_range: ValueRange | None = None,
    ) -> None:
        # Forked processes share arrays, but copy the objects of a list.
        self._paths = np.asarray(paths, dtype=np.str_)
        self._labels = np.asarray(labels, dtype=np.int64)
        self._value_range = value_range

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> Image.Image:
        """Read the file."""
        return load_image(self.path(index), self._value_range)

    def label(self, index: int) -> int:
        """Return the class number."""
        return int(self._labels[index])

    def path(self, index: int) -> str:
        """Return the file's path."""
        return str(self._paths[index])

    def scaled(self, value_range: ValueRange | None) -> FileImages:
        """Return the same files with another ``value_range``."""
        return FileImages(self._paths, self._labels, value_range)


class ArrayImages(ImageSet):
    """Grey or RGB images in memory with a class number each.

    Args:
        pixels: uint8, (N, H, W) or (N, H, W, 3).
        labels: the class number of each image.
    """

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]) -> None:
        self._pixels = pixels
        self._labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> Image.Image:
        """Return the image."""
        return Image.fromarray(self._pixels[index])

    def label(self, index: int) -> int:
        """Return the class number."""
        return int(self._labels[index])

    def scaled(self, value_range: ValueRange | None) -> ArrayImages:
        """Return this set, since its images have 8 bits."""
        return self


@dataclass(frozen=True)
class BrokenFile:
    """An image that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DataSource:
    """A data set that is ready to train on and to be evaluated on.

    Args:
        name: what it was opened as, e.g. "digits" or "folder:pets".
        class_names: one name per class, in the order of the labels; kept in Unicode's form NFC.
        train: the images to learn from.
        val: the images held out.
        in_chans: 1 for grey images, 3 for colour.
        image_size: the images' own height and width where they all have the same.
        hflip: whether a mirrored image still shows the same class.
        crop_pct: the share of the resized image that the crop keeps; None leaves it to the model.
        background: the grey level that a moved image is filled up with; None for the mean colour.
        split_here: True where ``val`` was cut out of the same images by a fixed seed, False where
            the data set came with its own held-out part.
        broken: images that could not be read and were left out.
        value_range: of float and deep images, the values that became 0 and 255; None where all
            images have 8 bits.
        deep_kinds: "float" and "integer" where there are images of floats, and of integers of more
            than 8 bits.
        typical_size: width and height of an image that is longer than half of the others.
        root: the folder that the files' relative names start from, "" where there is none.
        notes: what was decided about the data set as a whole, one sentence each, such as which
            folders were passed over; shown where a training or an evaluation starts.
        category_ids: the ids of the classes in an annotation file, () where classes have no ids.
        problems: problems of images and of entries of annotation files. Those were left out, except
            objects that were cut at the edge of their image.
    """

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    in_chans: int = 3
    image_size: tuple[int, int] | None = None
    hflip: bool = True
    crop_pct: float | None = None
    background: int | None = None
    split_here: bool = False
    broken: tuple[BrokenFile, ...] = ()
    value_range: ValueRange | None = None
    deep_kinds: tuple[str, ...] = ()
    typical_size: tuple[int, int] | None = None
    root: str = ""
    notes: tuple[str, ...] = ()
    category_ids: tuple[int | str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(nfc, self.class_names)))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def relative_name(self, images: ImageSet, index: int) -> str:
        """Return the name of an image's file below `root`, "" where the image is no file."""
        return relative_name(images.path(index), self.root)

    def scaled(self, value_range: ValueRange) -> DataSource:
        """Return the same data, its float and deep images read with ``value_range``."""
        train, val = self.train.scaled(value_range), self.val.scaled(value_range)
        notes = self.notes
        if self.value_range is not None:
            now, before = named(value_range), named(self.value_range)
            notes = (*notes, f"value_range {now} is used in place of {before}")
        return replace(self, train=train, val=val, value_range=value_range, notes=notes)


def relative_name(path: str, root: str) -> str:
    """Return the name of a file below ``root``, with "/" between folders on every system."""
    return path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")


class Joined(ImageSet):
    """The concatenation of several sets."""

    def __init__(self, *parts: ImageSet) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, index: int) -> Image.Image:
        """Return the image from the part that holds it."""
        part, within = self._find(index)
        return part.image(within)

    def label(self, index: int) -> int:
        """Return the class number."""
        part, within = self._find(index)
        return part.label(within)

    def target(self, index: int) -> Any:
        """Return the target from the part that holds the image."""
        part, within = self._find(index)
        return part.target(within)

    def path(self, index: int) -> str:
        """Return the file's path."""
        part, within = self._find(index)
        return part.path(within)

    def scaled(self, value_range: ValueRange | None) -> Joined:
        """Return the concatenation of the same sets, each with ``value_range``."""
        return Joined(*(part.scaled(value_range) for part in self._parts))

    def _find(self, index: int) -> tuple[ImageSet, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number], index - int(self._starts[number])


class Subset(ImageSet):
    """Some images of a set, in a given order.

    Args:
        images: the set.
        indices: of the images.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int] | np.ndarray) -> None:
        self._images = images
        self._indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Image.Image:
        """Return the image."""
        return self._images.image(int(self._indices[index]))

    def label(self, index: int) -> int:
        """Return the class number."""
        return self._images.label(int(self._indices[index]))

    def target(self, index: int) -> Any:
        """Return the image's target."""
        return self._images.target(int(self._indices[index]))

    def path(self, index: int) -> str:
        """Return the file's path."""
        return self._images.path(int(self._indices[index]))

    def scaled(self, value_range: ValueRange | None) -> Subset:
        """Return the same images of the set with ``value_range``."""
        return Subset(self._images.scaled(value_range), self._indices)
