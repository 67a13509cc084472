"""The pages of ``convattn data show``: images of a data set with their targets drawn on them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from convattn.cli.output import make_folder
from convattn.data import BrokenImageError, ImageSet, Preprocess, Transform, spread
from convattn.data.loading import READABLE, SampleKey, TransformedImages
from convattn.names import counted, shown
from convattn.progress import Progress
from convattn.runs.files import replacing
from convattn.runs.sheets import COLUMNS, ROWS, Tile, blank, contact_sheet, fitted
from convattn.runs.targets import counts_legend, draw_target, target_counts

Item = TypeVar("Item")

COUNTED = 2000  # images whose objects or pixels are counted
_PAGE = re.compile(r"convattn-page-\d+\.png")
_SEED = 0  # of the order in which images of a class are looked for


class Shown(NamedTuple):
    """An image as it is drawn, its target, and the lines under it.

    Args:
        image: the image.
        target: its target, in pixels of the image; None to draw none.
        caption: the lines.
    """

    image: Image.Image
    target: Any
    caption: tuple[str, ...]


@dataclass
class ClassCounts:
    """Objects, images or pixels of each class.

    Args:
        class_names: in the order of the class numbers.
        noun: what is counted, "objects" or "pixels", or "" for images with one class each.
        images: number of images with the class.
        items: number of objects or pixels of the class.
    """

    class_names: Sequence[str]
    noun: str = ""
    images: Counter[int] = field(default_factory=Counter)
    items: Counter[int] = field(default_factory=Counter)

    def add(self, target: Any) -> None:
        """Count the target of an image."""
        if isinstance(target, dict):
            self.noun = "objects"
        elif np.ndim(target):
            self.noun = "pixels"
        counts = target_counts(target)
        self.items.update(counts)
        self.images.update(counts.keys())

    def table(self) -> str:
        """Return a line per class in the order of the class numbers."""
        total = max(1, self.items.total())
        rows = [["class", "images", *([self.noun] if self.noun else [])]]
        for number, name in enumerate(self.class_names):
            row = [shown(name), f"{self.images[number]:,}"]
            if self.noun == "objects":
                row.append(f"{self.items[number]:,}")
            elif self.noun == "pixels":
                row.append(f"{self.items[number] / total:.2%}")
            rows.append(row)
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        return "\n".join(
            "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
            for first, *others in rows
        )


def count_classes(images: ImageSet, class_names: Sequence[str]) -> tuple[ClassCounts, str]:
    """Return the counts of the classes, and a sentence on how many images were counted."""
    counts = ClassCounts(class_names)
    numbers = spread(range(len(images)), COUNTED)
    with Progress("counting classes", len(numbers)) as progress:
        for number in numbers:
            try:
                counts.add(images.target(number))
            except BrokenImageError:  # its picture on a page shows the reason
                continue
            finally:
                progress.advance()
    if len(numbers) == len(images):
        return counts, f"counted in {counted(len(images), 'image')}"
    return counts, f"counted in {len(numbers):,} of {len(images):,} images, evenly spaced"


def chosen(images: ImageSet, label: int | None, count: int) -> Iterator[int]:
    """Yield the numbers of the images to show.

    Args:
        images: the images.
        label: a class number: images with this class in a random order that is always the same.
            None: images that are evenly spaced.
        count: at most so many images.
    """
    if label is None:
        yield from spread(range(len(images)), count)
        return
    order = np.random.default_rng(_SEED).permutation(len(images)).tolist()
    yield from itertools.islice((n for n in order if _has(images, n, label)), count)


def plain(images: ImageSet) -> Callable[[int], Shown]:
    """Return a function that returns an image with its target, as the data has them."""

    def read(number: int) -> Shown:
        image = images.image(number)
        size = f"{image.width} x {image.height}"
        return Shown(image, images.target(number), (caption(images, number), size))

    return read


def augmented(
    images: ImageSet, transform: Transform, preprocess: Preprocess
) -> Callable[[int], Shown]:
    """Return a function that returns an image and its target after a random transform.

    Args:
        images: the images.
        transform: the transform of a training.
        preprocess: says how the transform normalises.
    """
    samples = TransformedImages(images, transform)

    def read(number: int) -> Shown:
        sample = samples[SampleKey(number, seed=number)]
        if sample["status"] != READABLE:
            raise BrokenImageError(images.path(number), "the file or its target is damaged")
        image = to_picture(sample["image"], preprocess)
        size = f"{image.width} x {image.height}, augmented"
        return Shown(image, sample["target"], (caption(images, number), size))

    return read


def to_picture(image: Tensor, preprocess: Preprocess) -> Image.Image:
    """Return a normalised image (C, H, W) as a picture."""
    mean, std = (np.array(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    values = image.numpy() * std + mean
    pixels = (values * 255).round().clip(0, 255).astype(np.uint8)
    if len(pixels) >= 3:
        return Image.fromarray(pixels[:3].transpose(1, 2, 0))
    return Image.fromarray(pixels[0])


def caption(images: ImageSet, number: int) -> str:
    """Return the end of the path of an image, or its number."""
    path = Path(images.path(number))
    return "/".join(path.parts[-2:]) or f"image {number}"


def write_pages(
    folder: Path,
    items: Iterable[Item],
    read: Callable[[Item], Shown],
    class_names: Sequence[str],
) -> tuple[list[Path], int]:
    """Write pages of at most 16 images.

    Args:
        folder: where to write; an earlier page of the same number is replaced.
        items: what stands for each image, such as its number.
        read: returns the image of an item and its target.
        class_names: in the order of the class numbers.

    Returns:
        The paths of the pages, and the number of images.
    """
    paths: list[Path] = []
    images = 0
    for page, group in enumerate(_groups(items, COLUMNS * ROWS), 1):
        tiles, found = [], Counter[int]()
        with Progress(f"drawing page {page}", len(group)) as progress:
            for item in group:
                tiles.append(_tile(read, item, class_names, found))
                progress.advance()
        path = folder / f"convattn-page-{page:02}.png"
        sheet = contact_sheet(tiles, counts_legend(found, class_names))
        with replacing(path) as temporary:
            sheet.save(temporary, "PNG")
        paths.append(path)
        images += len(group)
    for path in folder.iterdir():  # of an earlier call with more pages
        if _PAGE.fullmatch(path.name) and path not in paths:
            path.unlink()
    return paths, images


def check_folder(option: str, folder: Path) -> None:
    """Create the folder; raise `ValueError` if it has files that are no pages."""
    make_folder(option, str(folder))
    others = [path.name for path in folder.iterdir() if not _PAGE.fullmatch(path.name)]
    if others:
        raise ValueError(
            f"{option} {shown(folder)} holds other files, such as {shown(others[0])}: name a new "
            "or an empty folder, or one with pages of an earlier call"
        )


def _tile(
    read: Callable[[Item], Shown], item: Item, class_names: Sequence[str], found: Counter[int]
) -> Tile:
    try:
        image, target, lines = read(item)
    except BrokenImageError as error:
        return Tile(blank(error.reason), (Path(error.path).name, "cannot be read"))
    picture = image.convert("RGB").resize(fitted(image.size), Image.Resampling.LANCZOS)
    if target is None:
        return Tile(picture, lines)
    found.update(target_counts(target))
    return Tile(draw_target(picture, target, class_names, image.size), lines)


def _has(images: ImageSet, number: int, label: int) -> bool:
    try:
        return target_counts(images.target(number))[label] > 0
    except BrokenImageError:
        return False


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while group := list(itertools.islice(rest, size)):
        yield group
