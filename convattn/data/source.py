"""What every data set looks like to the rest of the library: pictures, labels and hints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convattn.data.images import load_image
from convattn.data.names import nfc


class ImageSet:
    """Numbered 8-bit PIL images with a class each; no transforms, nothing random."""

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` upright, grey or RGB; raise `BrokenImageError` if unreadable."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the number of the class of image ``index``."""
        raise NotImplementedError

    def path(self, index: int) -> str:
        """Return the file that image ``index`` was read from, "" where there is none."""
        return ""


class FileImages(ImageSet):
    """Images that are files."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int]) -> None:
        # Arrays, not lists: worker processes share them instead of copying a million objects.
        self._paths = np.asarray(paths, dtype=np.str_)
        self._labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> Image.Image:
        """Read the file."""
        return load_image(self.path(index))

    def label(self, index: int) -> int:
        """Return the class number."""
        return int(self._labels[index])

    def path(self, index: int) -> str:
        """Return the file's path."""
        return str(self._paths[index])


class ArrayImages(ImageSet):
    """Grey or RGB images held in memory as one uint8 array (N, H, W) or (N, H, W, 3)."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]) -> None:
        self._pixels = pixels
        self._labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> Image.Image:
        """Return the image as PIL."""
        return Image.fromarray(self._pixels[index])

    def label(self, index: int) -> int:
        """Return the class number."""
        return int(self._labels[index])


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
        notes: what was decided about the data set as a whole, one sentence each, such as which
            folders were passed over; shown where a training or an evaluation starts.
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
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(nfc, self.class_names)))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


class Joined(ImageSet):
    """Several sets one after the other."""

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

    def path(self, index: int) -> str:
        """Return the file's path."""
        part, within = self._find(index)
        return part.path(within)

    def _find(self, index: int) -> tuple[ImageSet, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number], index - int(self._starts[number])
