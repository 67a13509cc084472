"""The files of ``convattn predict``: JSON, a drawing and a mask per image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from convattn.cli.output import make_folder
from convattn.names import counted, did_you_mean, nfc, shown
from convattn.runs.detections import DetectionPrediction, coco_results
from convattn.runs.files import replacing, write_json
from convattn.runs.predictions import Prediction

FILE = "predictions.json"


@dataclass
class Row:
    """What is printed for an image, without its pixels.

    Args:
        path: of the image.
        error: why there is no result; "" where there is one.
        values: of the JSON.
        cells: of the table.
        results: COCO results without ids of images.
    """

    path: str
    error: str
    values: dict[str, Any] = field(default_factory=dict)
    cells: Sequence[str] = ()
    results: list[dict[str, Any]] | None = None

    @staticmethod
    def of(prediction: Prediction) -> Row:
        """Return the row of a prediction."""
        if prediction.error:
            return Row(prediction.path, prediction.error)
        row = Row(prediction.path, "", prediction.to_dict(), prediction.cells())
        if isinstance(prediction, DetectionPrediction):
            row.results = coco_results(prediction, 0)
        return row


@dataclass(frozen=True)
class CocoIds:
    """The ids of an annotation file in COCO's form.

    Args:
        images: the id of each image by the name of its file, without folders.
        categories: the id of each class number.
    """

    images: Mapping[str, int]
    categories: Sequence[int]

    @staticmethod
    def read(path: Path, class_names: Sequence[str]) -> CocoIds:
        """Read the ids of images, and those of the classes by their names.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has another form, or lacks a class; the message names it.
        """
        try:
            content = json.loads(path.read_bytes())
            images = {Path(image["file_name"]).name: image["id"] for image in content["images"]}
            categories = {nfc(entry["name"]): entry["id"] for entry in content["categories"]}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{shown(path)} is no annotation file in COCO's form, with the lists images and "
                "categories"
            ) from error
        for name in class_names:
            if name not in categories:
                raise ValueError(
                    f"{shown(path)} has no category {shown(name)!r}, a class of the model"
                    f"{did_you_mean(name, categories)}"
                )
        return CocoIds(images, [categories[name] for name in class_names])


def as_json(
    rows: Sequence[Row],
    broken: Sequence[Any],
    notes: Sequence[str],
    coco: CocoIds | None = None,
) -> dict[str, Any]:
    """Return the JSON of predictions; for detection also "results" in COCO's results form.

    Without ``coco`` the id of an image is the number that its file name is, such as 139 for
    "000000000139.jpg"; if not all file names are numbers, or two are the same number, the running
    number from 0. The id of a category is the class number from 1.
    """
    found: dict[str, Any] = {"images": [row.values for row in rows]}
    if rows and rows[0].results is not None:
        ids = image_ids([row.path for row in rows]) if coco is None else _known_ids(rows, coco)
        pairs = [*zip(ids, rows, strict=True)]
        found["images"] = [{**row.values, "image_id": number} for number, row in pairs]
        found["results"] = [
            _result(entry, number, coco)
            for number, row in pairs
            for entry in row.results or ()
            if number is not None
        ]
        if missing := ids.count(None):
            them = "it" if missing == 1 else "them"
            note = f"{counted(missing, 'image')} not in the file of --ids: no results of {them}"
            notes = [*notes, note]
    files = [{"path": file.path, "reason": file.reason} for file in broken]
    return {**found, "broken": files, "notes": list(notes)}


def _known_ids(rows: Sequence[Row], coco: CocoIds) -> list[int | None]:
    return [coco.images.get(Path(row.path).name) for row in rows]


def _result(entry: Mapping[str, Any], number: int, coco: CocoIds | None) -> dict[str, Any]:
    label = entry["category_id"] - 1
    category = label + 1 if coco is None else coco.categories[label]
    return {**entry, "image_id": number, "category_id": category}


def image_ids(paths: Sequence[str]) -> list[int | None]:
    """Return the numbers that file names are; running numbers if some are no distinct numbers."""
    stems = [Path(path).stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers: list[int | None] = [int(stem) for stem in stems]
        if len({*numbers}) == len(numbers):
            return numbers
    return list(range(len(paths)))


class Files:
    """Write the drawing and the mask of each prediction.

    Two images of one name get a number. A file that cannot be written does not end the prediction:
    the first error is raised by `finish`.

    Args:
        output: folder for drawings, or None.
        masks: folder for masks, or None.

    Raises:
        OSError: a folder cannot be written.
        ValueError: a folder has other files, or both are the same.
    """

    def __init__(self, output: str | None, masks: str | None) -> None:
        self._folders = {"--output": output, "--masks": masks}
        self._names = Counter[str]()
        self._error: Exception | None = None
        if output and masks and Path(output).resolve() == Path(masks).resolve():
            raise ValueError(f"--output and --masks are both {shown(masks)}: name two folders")
        for option, folder in self._folders.items():
            if folder:
                _check_folder(option, Path(folder))

    def add(self, prediction: Prediction) -> None:
        """Write the files of a prediction.

        Raises:
            ValueError: masks were asked for, and the prediction has none.
        """
        if prediction.error or not any(self._folders.values()):
            return
        name = f"{self._stem(Path(prediction.path).stem)}.png"
        if masks := self._folders["--masks"]:
            mask = prediction.to_png()
            self._save(Path(masks) / name, lambda: mask)
        if output := self._folders["--output"]:
            self._save(Path(output) / name, prediction.draw)

    def finish(self, found: dict[str, Any]) -> None:
        """Write the JSON into the folders; raise the first error of all files."""
        for folder in self._folders.values():
            if folder:
                write_json(Path(folder) / FILE, found)
        if self._error:
            raise self._error

    def _stem(self, stem: str) -> str:
        while self._names[stem]:
            self._names[stem] += 1
            stem = f"{stem}-{self._names[stem]}"
        self._names[stem] += 1
        return stem

    def _save(self, path: Path, draw: Callable[[], Image.Image]) -> None:
        try:
            picture = draw()
            with replacing(path) as temporary:
                picture.save(temporary, "PNG")
        except (OSError, ValueError) as error:  # a full disk, or an image that has disappeared
            self._error = self._error or error


def _check_folder(option: str, folder: Path) -> None:
    """Create a folder; raise `ValueError` if it has other files.

    A new folder gets a JSON that says that the prediction is not finished, so that the same command
    works after an interruption.
    """
    make_folder(option, str(folder))
    if (folder / FILE).is_file():
        return
    if any(folder.iterdir()):
        raise ValueError(
            f"{option} {shown(folder)} holds other files, which could be overwritten: name a new "
            f"or an empty folder, or one with the {FILE} of an earlier prediction"
        )
    write_json(folder / FILE, as_json([], [], ["this prediction was not finished"]))
