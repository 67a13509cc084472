"""The files of ``convattn predict``: JSON, a drawing and a mask per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from convattn.cli.output import make_folder
from convattn.names import shown
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


def as_json(rows: Sequence[Row], broken: Sequence[Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return the JSON of predictions; for detection also "results" in COCO's results form.

    The id of an image is the number that its file name is, such as 139 for "000000000139.jpg"; if
    not all file names are numbers, or two are the same number, the running number from 0.
    """
    found: dict[str, Any] = {"images": [row.values for row in rows]}
    if rows and rows[0].results is not None:
        ids = image_ids([row.path for row in rows])
        found["images"] = [{**r.values, "image_id": i} for i, r in zip(ids, rows, strict=True)]
        found["results"] = [
            {**entry, "image_id": number}
            for number, row in zip(ids, rows, strict=True)
            for entry in row.results or ()
        ]
    files = [{"path": file.path, "reason": file.reason} for file in broken]
    return {**found, "broken": files, "notes": list(notes)}


def image_ids(paths: Sequence[str]) -> list[int]:
    """Return the numbers that file names are; running numbers if some are no distinct numbers."""
    stems = [Path(path).stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
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
