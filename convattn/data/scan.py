"""Find the images that cannot be read, before a training starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from convattn.data.images import BrokenImageError, ImageInfo, check_image, upright_size
from convattn.data.source import BrokenFile, ImageSet
from convattn.data.survey import Survey, spread
from convattn.names import shown
from convattn.progress import Progress

# Up to this many images are decoded at the start, which takes seconds. Of more images only the
# headers are read; images whose pixels are damaged are then counted while training.
DECODE_AT_MOST = 20_000
_VALUES_OF = 1_000  # at most so many float and deep images are then decoded for their values
_SHOWN = 10

_T = TypeVar("_T")
_R = TypeVar("_R")


def find_broken(
    paths: Sequence[str],
    survey: Survey | None = None,
    *,
    decode: bool | None = None,
    misfit: Callable[[int, ImageInfo], str] | None = None,
) -> list[BrokenFile]:
    """Return the files among ``paths`` that are not readable images, in the same order.

    Args:
        paths: the files.
        survey: size and kind of all readable images are added to it, and values of float and deep
            images.
        decode: whether to decode all images; else the headers are read, and some of the float and
            deep images are decoded. By default images are decoded unless there are many.
        misfit: returns why the readable image with this index does not fit the rest of the data, ""
            if it fits; an image that does not fit is broken too.
    """
    decode = len(paths) <= DECODE_AT_MOST if decode is None else decode
    survey = Survey() if survey is None else survey
    broken, unread = [], []
    title = "checking images" if decode else "reading the headers of images"
    for index, found in enumerate(_inspect_all(paths, decode, title)):
        path = paths[index]
        if isinstance(found, BrokenFile):
            broken.append(found)
            continue
        if misfit is not None and (why := misfit(index, found)):
            broken.append(BrokenFile(path, why))
            continue
        survey.add(path, found)
        if found.kind != "8-bit" and not decode:
            unread.append(path)
    sample = spread(unread, _VALUES_OF)
    for found in _inspect_all(sample, True, "measuring values of images"):
        if isinstance(found, ImageInfo):
            survey.add_values(found)
    return broken


def image_sizes(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return width and height of upright images, (0, 0) for those that cannot be read."""
    return list(in_order(_size, paths, "reading the headers of images"))


def _size(path: str) -> tuple[int, int]:
    try:
        return upright_size(path)
    except BrokenImageError:
        return 0, 0


def _inspect_all(
    paths: Sequence[str], decode: bool, title: str
) -> Iterator[ImageInfo | BrokenFile]:
    return in_order(lambda path: _inspect(path, decode), paths, title)


def in_order(work: Callable[[_T], _R], items: Sequence[_T], title: str) -> Iterator[_R]:
    """Yield the result for each item, computed on several threads, and show the progress."""
    with (
        Progress(title, len(items)) as progress,
        ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1)) as pool,
    ):
        try:
            for found in pool.map(work, items):
                progress.advance()
                yield found
        finally:  # Ctrl-C does not wait for the images that are left
            pool.shutdown(wait=False, cancel_futures=True)


def _inspect(path: str, decode: bool) -> ImageInfo | BrokenFile:
    try:
        return check_image(path, decode=decode)
    except BrokenImageError as error:
        return BrokenFile(error.path, error.reason)


def reread(images: ImageSet, numbers: Iterable[int]) -> list[BrokenFile]:
    """Return which files of the images with these numbers cannot be read, and why.

    The file is that of the image, or that of its target.
    """
    found = []
    for number in numbers:
        try:
            images.image(number)
            images.target(number)
        except BrokenImageError as error:
            found.append(BrokenFile(error.path, error.reason))
    return found


def check_share(broken: Sequence[BrokenFile], total: int, max_broken: float, where: str) -> None:
    """Raise `ValueError` if more than ``max_broken`` of ``total`` images are broken."""
    if len(broken) <= max_broken * total:
        return
    listed = "\n".join(f"  {shown(file.path)}: {shown(file.reason)}" for file in broken[:_SHOWN])
    more = f"\n  and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    raise ValueError(
        f"{len(broken)} of {total} images in {shown(where)} cannot be read "
        f"({len(broken) / total:.1%}, at most {max_broken:.1%} are skipped):\n{listed}{more}\n"
        f"Replace or delete them, or allow more with max_broken=0.1"
    )
