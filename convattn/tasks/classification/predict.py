"""The predictions of a checkpoint for image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from convattn.data import BrokenFile
from convattn.runs.predictions import ClassPrediction
from convattn.tasks.classification.task import Classification
from convattn.tasks.table import load_checkpoint
from convattn.training import predict as engine
from convattn.training.evaluate import best_device
from convattn.training.trained import Checkpoint


@dataclass(frozen=True)
class Predictions:
    """The predictions of the readable images, the other files, and notes."""

    images: tuple[ClassPrediction, ...]
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
    """Classify image files; `convattn.Predictor` loads the model once and takes other images too.

    Args:
        checkpoint: a run folder, a file, or what `load_checkpoint` returned.
        paths: image files, and folders, whose images are all classified.
        top_k: number of classes per image, at most as many as there are.
        batch_size: images at a time.
        device: "auto" takes a GPU if there is one.
        value_range: the values of black and white in float images and images of more than 8 bits;
            by default those of the training. Without either, they are 0 and 65535 for integers,
            and computed from each float image by itself.

    Returns:
        `Predictions`, in the order of the paths.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no images, or none of the images can be read.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    place = best_device(device)
    found = engine.Predictions(
        Classification,
        engine.ready(loaded.model, place),
        loaded.card,
        place,
        [*paths],
        batch_size=batch_size,
        value_range=value_range,
        options={"top_k": top_k},
    )
    images, broken = engine.split(cast("Iterator[ClassPrediction]", found))
    return Predictions(tuple(images), tuple(broken), found.notes)
