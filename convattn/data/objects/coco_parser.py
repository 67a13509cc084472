"""Reads an annotation file in COCO's format: boxes, polygons and run lengths."""

from __future__ import annotations

import json as json_format
import math
import os
import posixpath
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convattn.data.objects.coco_layout import find_images, names_on_disk
from convattn.data.objects.index import (
    ROUNDING,
    Box,
    EntryError,
    IndexBuilder,
    MaskData,
    ObjectIndex,
    clean_polygons,
)
from convattn.data.objects.run_lengths import compressed, run_lengths_problem
from convattn.data.problems import Problem, UnusableDataError
from convattn.data.scan import image_sizes
from convattn.data.source import relative_name
from convattn.names import shown

_LARGEST_SIDE = 2**31 - 1
_LARGEST_NUMBER = 2**62
_CORNERS_SHARE = 1 / 3  # share of the boxes that leave their image in a file of corners
_CORNERS_FIT = 0.95


class CocoParser:
    """Reads an annotation file.

    Args:
        root: the folder of the data set.
        file: the annotation file.
        images: the folder of the images; by default it is found.
    """

    def __init__(self, root: Path, file: Path, images: str | None) -> None:
        self.root, self.file, self.images = root, file, images
        self.built = IndexBuilder()
        self.sizes: list[tuple[int, int]] = []
        self.rows: dict[Any, int] = {}
        self.left_out: set[Any] = set()  # ids of images
        self.labels: dict[Any, int] = {}
        self.category_ids: list[int | str] = []
        self.corners: list[tuple[str, Box]] = []
        self.as_corners = 0

    def parse(self) -> tuple[ObjectIndex, bool]:
        """Return the index, and whether all of it comes from the file and not from the images."""
        content = self._content()
        names = self._read_categories(content["categories"])
        is_complete = self._read_images(content.pop("images"))
        self._read_annotations(content.pop("annotations"))
        self._check_corners()
        self._note_groups(content["categories"], names)
        return self.built.build(names, self.category_ids), is_complete

    def _content(self) -> dict[str, list[Any]]:
        try:
            content = json_format.loads(_text(self.file), object_hook=_compact)
        except (ValueError, RecursionError) as error:
            raise self._unusable("", f"the file is not JSON: {error}") from error
        except OSError as error:
            raise self._unusable("", f"the file cannot be read: {error.strerror}") from error
        if isinstance(content, list):
            raise self._unusable(
                "", "the file holds a list, as results do: expected images, annotations, categories"
            )
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise self._unusable(
                    "",
                    f"the file has no list {key!r}: COCO's format has the lists images, "
                    "annotations and categories in one file for all images",
                )
        return dict(content)

    def _unusable(self, entry: str, reason: str) -> UnusableDataError:
        name = relative_name(str(self.file), str(self.root))
        problem = Problem(name, entry, reason)
        return UnusableDataError(f"{shown(self.file)}: {shown(reason)}", [problem])

    def _read_categories(self, categories: Sequence[Any]) -> list[str]:
        """Return the names of the classes; ids become numbers in the order of the ids."""
        found: dict[Any, str] = {}
        given: dict[Any, int | str] = {}
        for place, category in enumerate(categories):
            identity, name = _get(category, "id"), _get(category, "name")
            key = _id(identity)
            entry = _entry("category", identity, place)
            name = str(name) if type(name) is int else name
            if not isinstance(name, str) or not name or key is None:
                self._problem(entry, "the category has no id and name")
            elif key in found:
                self._problem(entry, f"duplicate id: category {shown(found[key])!r} has it too")
            else:
                found[key] = name
                given[key] = identity if isinstance(identity, str) else key
        if not found:
            raise self._unusable("", "the file has no categories")
        keys = sorted(found, key=lambda key: (isinstance(key, str), key))
        self.labels = {key: number for number, key in enumerate(keys)}
        self.category_ids = [given[key] for key in keys]
        return self._unique([(key, found[key]) for key in keys])

    def _unique(self, categories: Sequence[tuple[Any, str]]) -> list[str]:
        """Return names of which no two are the same, such as "cell" and "cell (id 1)"."""
        names: list[str] = []
        for key, name in categories:
            if name in names:
                self.built.notes.append(
                    f"two categories are called {shown(name)!r}; the second is class "
                    f"'{shown(name)} (id {shown(key)})'"
                )
                name = f"{name} (id {key})"
            names.append(name)
        return names

    def _read_images(self, images: Sequence[Any]) -> bool:
        unsized = []
        names = [_file_name(image) for image in images]
        known = [name for name in names if name]
        changed, note = names_on_disk(self.root, self.file, known, self.images)
        self.built.notes += [note] if note else []
        first: dict[str, str] = {}
        for place, (image, name) in enumerate(zip(images, names, strict=True)):
            identity = _get(image, "id")
            key = _id(identity)
            entry = _entry("image", identity, place)
            if not name or key is None:
                self._image_problem(entry, "the image has no id and file_name")
                self.left_out |= {key} - {None}
            elif key in self.rows:
                self._image_problem(entry, f"duplicate id: two images have it, here {shown(name)}")
            elif name in first:
                self._image_problem(
                    entry, f"duplicate file name: {first[name]} is {shown(name)} too"
                )
                self.left_out.add(key)
            else:
                first[name] = entry
                size = _side(_get(image, "width")), _side(_get(image, "height"))
                is_known = min(size) > 0
                number = (
                    key if isinstance(key, int) and abs(key) < _LARGEST_NUMBER else len(self.rows)
                )
                name = changed.get(name, name)
                row = self.built.add_image(name, size if is_known else (0, 0), number)
                self.rows[key] = row
                self.sizes.append(size)
                if not is_known:
                    unsized.append((row, name))
        is_found = all(map(str.isascii, known)) or self._are_found(known)
        return self._read_sizes(unsized) and not changed and is_found

    def _are_found(self, names: Sequence[str]) -> bool:
        """Return whether the images whose names have several Unicode forms are there."""
        folder = find_images(self.root, self.file, names, self.images)[0]
        return all(name.isascii() or os.path.isfile(folder / name) for name in names)

    def _read_sizes(self, unsized: Sequence[tuple[int, str]]) -> bool:
        """Read sizes that the file does not say from the images."""
        if not unsized:
            return True
        folder, _ = find_images(self.root, self.file, [name for _, name in unsized], self.images)
        sizes = image_sizes([str(folder / name) for _, name in unsized])
        for (row, _), size in zip(unsized, sizes, strict=True):
            self.sizes[row] = size
            self.built.set_size(row, size)
        return False

    def _read_annotations(self, annotations: list[Any]) -> None:
        """Add the objects; ``annotations`` is emptied, as a large file needs gigabytes."""
        seen: set[Any] = set()
        self.built.entries = len(annotations)
        for place, annotation in enumerate(annotations):
            annotations[place] = None
            identity = _get(annotation, "id")
            key = _id(identity)
            entry = _entry("annotation", identity, place)
            try:
                if not isinstance(annotation, dict):
                    raise EntryError("the annotation is not an object of JSON")
                if key is not None:
                    if key in seen:
                        raise EntryError("duplicate id: an earlier annotation has it too")
                    seen.add(key)
                number = key if isinstance(key, int) and abs(key) < _LARGEST_NUMBER else place
                self._read_annotation(annotation, entry, number)
            except EntryError as error:
                self._problem(entry, str(error))

    def _read_annotation(self, found: dict[str, Any], entry: str, number: int) -> None:
        image = _id(found.get("image_id"))
        row = self.rows.get(image)
        if row is None:
            gone = "its image is left out" if image in self.left_out else "no such image"
            raise EntryError(f"{gone}: image_id {shown(found.get('image_id'))}")
        label = self.labels.get(_id(found.get("category_id")))
        if label is None:
            raise EntryError(f"unknown class: category_id {shown(found.get('category_id'))}")
        size = self.sizes[row]
        if min(size) <= 0:
            raise EntryError("the size of the image is not known")
        problems: list[str] = []
        cut: list[str] = []
        mask = self._mask(found.get("segmentation"), size, problems, cut)
        box = self._box(found, size, mask, entry, cut)
        self.built.cut += [Problem("", entry, why) for why in cut]
        self.built.mask_problems += [Problem("", entry, why) for why in problems]
        area: Any = found.get("area")
        self.built.add_object(
            row,
            label,
            box,
            entry=number,
            crowd=found.get("iscrowd") in (1, "1"),
            area=area if _is_number(area) and 0 < area < _LARGEST_NUMBER else math.nan,
            mask=mask,
            has_broken_mask=bool(problems),
        )

    def _box(
        self,
        found: dict[str, Any],
        size: tuple[int, int],
        mask: MaskData | None,
        entry: str,
        cut: list[str],
    ) -> Box:
        """Return the box; the reason is added to ``cut`` if it leaves the image."""
        box = found.get("bbox")
        if box is None and isinstance(mask, list) and mask:
            x = [value for part in mask for value in part[::2]]
            y = [value for part in mask for value in part[1::2]]
            return self.built.clean_box((min(x), min(y), max(x), max(y)), size, cut.append)
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise EntryError(f"bbox is not x, y, width, height: {str(box)[:60]}")
        x1, y1, width, height = box
        x2, y2, right, bottom = x1 + width, y1 + height, size[0] + ROUNDING, size[1] + ROUNDING
        if x1 < width <= right and y1 < height <= bottom:
            self.as_corners += 1
            if x2 > right or y2 > bottom:
                self.corners.append((entry, (x1, y1, width, height)))
        return self.built.clean_box((x1, y1, x2, y2), size, cut.append)

    def _check_corners(self) -> None:
        """Raise an error if the boxes are corners where width and height are meant."""
        total = self.built.entries
        leaving = len(self.corners)
        if leaving <= total * _CORNERS_SHARE or self.as_corners < total * _CORNERS_FIT:
            return
        reason = "bbox is x1, y1, x2, y2 instead of x, y, width, height"
        name = relative_name(str(self.file), str(self.root))
        problems = [
            Problem(name, entry, f"{reason}: {', '.join(f'{side:g}' for side in box)}")
            for entry, box in self.corners
        ]
        raise UnusableDataError(
            f"{shown(self.file)}: {leaving:,} of {total:,} boxes lie beyond their image as x, y, "
            f"width, height, and nearly all fit as x1, y1, x2, y2, such as {shown(problems[0])}; "
            "write bbox = [x1, y1, x2 - x1, y2 - y1] into the file",
            problems,
        )

    def _mask(
        self, found: Any, size: tuple[int, int], problems: list[str], cut: list[str]
    ) -> MaskData | None:
        """Return the mask, None if there is none.

        Reasons are added to ``problems`` if parts of it cannot be used, to ``cut`` if parts leave
        the image.
        """
        if found is None or found == []:
            return None
        if isinstance(found, list):
            if all(map(_is_number, found)):
                found = [found]  # one polygon without the outer list
            return clean_polygons(found, size, problems.append, cut.append)
        if why := run_lengths_problem(found, size):
            problems.append(why)
            return None
        return compressed(found, size)

    def _note_groups(self, categories: Sequence[Any], names: Sequence[str]) -> None:
        """Add a note on categories without objects that are the supercategory of others."""
        above = [_get(category, "supercategory") for category in categories]
        used = self.built.labels()
        for number, name in enumerate(names):
            if name in above and number not in used:
                self.built.notes.append(
                    f"category {shown(name)!r} has no objects and is the supercategory of others: "
                    "it is counted as a class; if it is not a class, delete it from the file"
                )

    def _problem(self, entry: str, reason: str) -> None:
        self.built.problems.append(Problem("", entry, reason))

    def _image_problem(self, entry: str, reason: str) -> None:
        self.built.image_problems.append(Problem("", entry, reason))


def _text(path: Path) -> str:
    """Return the text of a JSON file; its bytes are freed before the text is parsed."""
    content = path.read_bytes()
    return content.decode(json_format.detect_encoding(content), "surrogatepass")


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with arrays as polygons, which need a fourth of the memory of lists."""
    found = entry.get("segmentation")
    if isinstance(found, list):
        entry["segmentation"] = [_floats(part) for part in found]
    return entry


def _floats(part: Any) -> Any:
    """Return a list of numbers as an array; other values as they are."""
    if type(part) is not list:
        return part
    try:
        return array("d", part)
    except (TypeError, OverflowError):  # the problem is named later
        return part


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _entry(kind: str, identity: Any, place: int) -> str:
    return f"{kind} at {place}" if identity is None else f"{kind} {shown(identity)}"


def _id(value: Any) -> int | str | None:
    """Return an id in the form that is compared: 7.0 and "7" are 7; None if it is no id."""
    if type(value) is int:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if not isinstance(value, str):
        return None
    is_number = value.isascii() and value.isdecimal() and len(value) < 19
    return int(value) if is_number and (value[0] != "0" or value == "0") else value


def _file_name(image: Any) -> str:
    """Return the name of an image's file with "/" between folders, "" if there is none."""
    name = _get(image, "file_name")
    if not isinstance(name, str) or not name:
        return ""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no file has such a name
        return ""
    return posixpath.normpath(name.replace("\\", "/"))  # the file may come from Windows


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < _LARGEST_NUMBER


def _side(value: Any) -> int:
    """Return a width or height, 0 if the value is not a valid one."""
    if not _is_number(value) or not 0 < value <= _LARGEST_SIDE or value != int(value):
        return 0
    return int(value)
