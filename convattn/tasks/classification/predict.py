"""What a checkpoint sees in images."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from convattn.checks import check_positive
from convattn.data import (
    SET_RANGE,
    BrokenFile,
    BrokenImageError,
    Listing,
    Survey,
    ValueRange,
    check_image,
    check_range,
    eval_transform,
    find_broken,
    list_images,
    load_image,
    passed_over,
    shown,
    spread,
)
from convattn.data.value_range import named
from convattn.names import counted
from convattn.runs.card import ModelCard
from convattn.tasks.classification.checkpoint import Checkpoint, load_checkpoint
from convattn.tasks.classification.evaluate import best_device
from convattn.tasks.classification.trained_data import EARLIER_RANGE, no_range

_LOOKED_AT = 200  # files, for what can be said about their values


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class ImagePrediction:
    """The most probable classes of one image, the best first."""

    path: str
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Predictions:
    """One entry per image, the files that could not be read, and what else there is to say."""

    images: tuple[ImagePrediction, ...]
    broken: tuple[BrokenFile, ...]
    notes: tuple[str, ...] = ()


def predict(
    checkpoint: str | Path | Checkpoint,
    paths: Iterable[str | Path],
    *,
    top_k: int = 5,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    value_range: Sequence[float] | None = None,
) -> Predictions:
    """Classify images.

    Args:
        checkpoint: a run folder, a file, or what `load_checkpoint` returned.
        paths: image files, and folders, of which all images are taken.
        top_k: classes to name per image, at most as many as there are.
        batch_size: images at a time.
        device: "auto" takes a GPU if there is one.
        value_range: of float images and those of more than 8 bits, the values that become black
            and white; by default those of the training. Without either, integers become black at 0
            and white at 65535, and float images are read each by its own values.

    Returns:
        `Predictions`, in the order of the paths.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no images, or none of the images can be read.
    """
    check_positive("top_k", top_k)
    check_positive("batch_size", batch_size)
    found = [_list(Path(path).expanduser()) for path in paths]
    files = [file for listing in found for file in listing.images]
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    read = _Reader(loaded.card, check_range(value_range))
    place = best_device(device)
    loaded.model.to(place).eval()
    broken: list[BrokenFile] = []
    images: list[ImagePrediction] = []
    for names, batch in _batches(loaded, files, batch_size, read, broken):
        images += _guess(loaded, names, batch.to(place), top_k)
    if files and not images:
        raise ValueError(
            f"none of the {len(files)} images can be read, the first because: "
            f"{shown(broken[0].path)}: {broken[0].reason}"
        )
    return Predictions(tuple(images), tuple(broken), (*read.notes(files), *passed_over(found)))


def _list(path: Path) -> Listing:
    if path.is_file():
        return Listing(images=[str(path)])
    if not path.is_dir():
        raise FileNotFoundError(f"there is no image or folder {shown(path)}")
    found = list_images(path)
    if not found.images:
        raise ValueError(
            "; ".join([f"no images in the folder {shown(path)}", *passed_over([found])])
        )
    return found


class _Reader:
    """Reads images for a trained model, each in the same way whatever other images there are.

    By the range that was given, or else the card's. Where there is neither, integers of more than
    8 bits are read as 0 to 65535, and images of floats each by its own values.
    """

    def __init__(self, card: ModelCard, given: ValueRange | None) -> None:
        self._card = card
        self._given = given
        self._range = given or card.value_range
        self._kinds: Counter[str] = Counter()  # of the images that were read by no range

    def __call__(self, path: str) -> Image.Image:
        if self._range is not None:
            return load_image(path, self._range)
        kind = check_image(path, decode=False).kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `notes` says it once for all images
            image = load_image(path, EARLIER_RANGE if kind == "integer" else None)
        self._kinds[kind] += 1
        return image

    def notes(self, files: Sequence[str]) -> list[str]:
        """Return what is to be said once all ``files`` are read."""
        return self._of_no_range() if self._range is None else self._of(self._range, files)

    def _of_no_range(self) -> list[str]:
        said = {
            "integer": f"of integers of more than 8 bits as {named(EARLIER_RANGE)}",
            "float": "of floats each by its own values",
        }
        parts = [
            f"{counted(self._kinds[k], 'image')} {s}" for k, s in said.items() if self._kinds[k]
        ]
        if not parts:
            return []
        return [f"read {' and '.join(parts)}, as {no_range(self._card)}; {SET_RANGE}"]

    def _of(self, used: ValueRange, files: Sequence[str]) -> list[str]:
        survey = Survey()
        find_broken(spread(files, _LOOKED_AT), survey, decode=False)
        notes = []
        in_vain = self._given is not None and survey.sizes and not survey.deep_images
        if in_vain or (survey.deep_images and survey.misfit(used)):
            notes.append(survey.note(used, given=True))
        if self._card.value_range is not None and "8-bit" in survey.first:
            notes.append(
                f"images of 8 bits, such as {survey.first['8-bit']}, stay as they are, but the "
                "model was trained on images of floats or of more bits (value_range "
                f"{named(self._card.value_range)})"
            )
        return notes


def _batches(
    loaded: Checkpoint,
    files: Sequence[str],
    batch_size: int,
    read: _Reader,
    broken: list[BrokenFile],
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of readable images; the others are added to ``broken``."""
    transform = eval_transform(loaded.card.preprocess)
    for start in range(0, len(files), batch_size):
        names, tensors = [], []
        for file in files[start : start + batch_size]:
            try:
                tensors.append(transform(read(file)))
                names.append(file)
            except BrokenImageError as error:
                broken.append(BrokenFile(error.path, error.reason))
        if tensors:
            yield names, torch.stack(tensors)


@torch.inference_mode()
def _guess(
    loaded: Checkpoint, names: Sequence[str], batch: Tensor, top_k: int
) -> list[ImagePrediction]:
    classes = loaded.card.class_names
    best = loaded.model(batch).float().softmax(-1).topk(min(top_k, len(classes)))
    rows = zip(names, best.values.tolist(), best.indices.tolist(), strict=True)
    return [
        ImagePrediction(
            name, tuple(Guess(classes[i], p) for p, i in zip(values, numbers, strict=True))
        )
        for name, values, numbers in rows
    ]
