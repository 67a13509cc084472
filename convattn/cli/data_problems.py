"""The images of a data set that have problems, for ``convattn data show --problems``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convattn.cli.data_pages import Shown, caption
from convattn.data import BrokenImageError, DataSource, ImageSet, Problem, load_image


class Problematic(NamedTuple):
    """An image with problems.

    Args:
        path: of the image; that of the annotation file where the image is not known.
        problems: its problems.
    """

    path: str
    problems: Sequence[Problem]


def problem_images(
    source: DataSource, problems: Sequence[Problem], count: int
) -> tuple[Iterator[Problematic], Callable[[Problematic], Shown]]:
    """Return the images with problems, at most ``count``, and a function that reads one.

    A problem of an entry of a JSON file belongs to the image of this entry, and one of another file
    to the image of the same name.
    """
    finder = _Finder(source)
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(finder.image(problem), []).append(problem)
    images = itertools.starmap(Problematic, found.items())
    return itertools.islice(images, count), finder.read


class _Finder:
    """Finds the image that a problem belongs to."""

    def __init__(self, source: DataSource) -> None:
        self.root = Path(source.root)
        self.places: dict[str, tuple[ImageSet, int]] = {}
        for images in (source.train, source.val):
            self.places |= {images.path(n): (images, n) for n in range(len(images))}
        known = [*self.places, *(file.path for file in source.broken)]
        self.by_stem = {Path(path).stem: path for path in known}
        self.by_name = {Path(path).name: path for path in known}
        self.entries: dict[Path, Mapping[str, str]] = {}

    def image(self, problem: Problem) -> str:
        path = self.root / problem.file
        if str(path) in self.places:
            return str(path)
        if path.suffix.lower() == ".json":
            if path not in self.entries:
                self.entries[path] = _entries(path)
            name = self.entries[path].get(problem.entry, "")
            return self.by_name.get(Path(name).name, str(path))
        return self.by_stem.get(path.stem, str(path))

    def read(self, item: Problematic) -> Shown:
        first, *others = item.problems
        more = f" (and {len(others)} more)" if others else ""
        text = f"{first.entry}: {first.reason}{more}" if first.entry else f"{first.reason}{more}"
        if item.path in self.places:
            images, number = self.places[item.path]
            image = images.image(number)
            return Shown(image, images.target(number), (caption(images, number), text))
        try:
            image = load_image(item.path)
        except BrokenImageError as error:
            raise BrokenImageError(item.path, text) from error
        return Shown(image, None, (Path(item.path).name, text))


def _entries(path: Path) -> dict[str, str]:
    """Return the name of the image of each annotation and image of a file in COCO's format."""
    try:
        content: Any = json.loads(path.read_bytes())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        found = {f"image {key}": name for key, name in names.items()}
        for place, annotation in enumerate(content["annotations"]):
            name = names.get(annotation["image_id"])
            if name is not None:
                found[f"annotation {annotation.get('id')}"] = name
                found[f"annotation at {place}"] = name
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # the problems say what is wrong with the file
    return found
