"""What a checkpoint sees in images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convattn.data import (
    BrokenFile,
    BrokenImageError,
    Listing,
    Survey,
    ValueRange,
    check_range,
    eval_transform,
    find_broken,
    list_images,
    load_image,
    misfit,
    passed_over,
    shown,
    spread,
)
from convattn.ops._checks import check_positive
from convattn.tasks.classification.checkpoint import (
    Checkpoint,
    ModelCard,
    load_checkpoint,
)
from convattn.tasks.classification.evaluate import best_device
from convattn.tasks.classification.trained_data import range_notes

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
            and white; by default those of the training.

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
    scale, notes = _scale(loaded.card, files, check_range(value_range))
    place = best_device(device)
    loaded.model.to(place).eval()
    broken: list[BrokenFile] = []
    images: list[ImagePrediction] = []
    for names, batch in _batches(loaded, files, batch_size, scale, broken):
        images += _guess(loaded, names, batch.to(place), top_k)
    if files and not images:
        raise ValueError(
            f"none of the {len(files)} images can be read, the first because: "
            f"{shown(broken[0].path)}: {broken[0].reason}"
        )
    return Predictions(tuple(images), tuple(broken), (*notes, *passed_over(found)))


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


def _scale(
    card: ModelCard, files: Sequence[str], given: ValueRange | None
) -> tuple[ValueRange | None, list[str]]:
    """The range to read float and deep images with, and what to say about it."""
    survey = Survey()
    find_broken(spread(files, _LOOKED_AT), survey, decode=False)
    scale = given or card.value_range
    if scale is None:
        scale = survey.decide("this call")
        decided = [] if scale is None else [survey.note(scale, given=False)]
        return scale, [*decided, *range_notes(card, scale)]
    if not survey.deep_images:
        return scale, [survey.note(scale, given=True)] if survey.sizes else []
    lost = misfit(survey.values(), scale)
    return scale, [survey.note(scale, given=True)] if lost else []


def _batches(
    loaded: Checkpoint,
    files: Sequence[str],
    batch_size: int,
    scale: ValueRange | None,
    broken: list[BrokenFile],
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of readable images; the others are added to ``broken``."""
    transform = eval_transform(loaded.card.preprocess)
    for start in range(0, len(files), batch_size):
        names, tensors = [], []
        for file in files[start : start + batch_size]:
            try:
                tensors.append(transform(load_image(file, scale)))
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
