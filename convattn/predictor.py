"""`Predictor`: a trained model, loaded from where it is stored and called with images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.data import AnyImage, Preprocess
from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.predictions import Prediction
from convattn.tasks.table import find_task, load_checkpoint
from convattn.training.evaluate import best_device
from convattn.training.predict import Predictions, ready
from convattn.training.trained import Checkpoint

# How each kind of file is loaded; "" is a run folder.
_KINDS: dict[str, Callable[[Path], Checkpoint]] = {
    "": load_checkpoint,
    ".safetensors": load_checkpoint,
    ".ckpt": load_checkpoint,
}


class Predictor:
    """A trained model that predicts images of any kind.

    ::

        predictor = Predictor.load("runs/glnet_nano-pets-1")
        for prediction in predictor("photos"):
            print(prediction.path, prediction.label, prediction.probability)

    A call changes no state of the predictor: any number of threads can share one. It changes
    neither the random number generators nor the number of threads of PyTorch.

    Args:
        checkpoint: what `convattn.tasks.classification.load_checkpoint` returned. Its model is
            copied unless it is in evaluation mode and on the device; the given one never changes.
        device: "auto" takes a GPU if there is one.

    Attributes:
        model: the network, in evaluation mode on the device.
        card: the model card.
        device: where it computes.
    """

    model: nn.Module
    card: ModelCard
    device: torch.device

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device = "auto") -> None:
        self._task = find_task(checkpoint.card.task)
        self.device = best_device(device)
        self.model = ready(checkpoint.model, self.device)
        self.card = checkpoint.card

    @classmethod
    def load(
        cls, source: str | os.PathLike[str] | Checkpoint, *, device: str | torch.device = "auto"
    ) -> Predictor:
        """Load a trained model.

        Args:
            source: a run folder, which stands for its best checkpoint, or a .safetensors or .ckpt
                file; also what `convattn.tasks.classification.load_checkpoint` returned.
            device: "auto" takes a GPU if there is one.

        Raises:
            FileNotFoundError: there is no such file or folder, or the folder has no checkpoint.
            ValueError: the file is of another kind, is damaged, or convattn did not write it.
        """
        if isinstance(source, Checkpoint):
            return cls(source, device=device)
        path = Path(source).expanduser()
        kind = "" if path.is_dir() else path.suffix.lower()
        if path.exists() and kind not in _KINDS:
            kinds = " or ".join(kind for kind in _KINDS if kind)
            raise ValueError(
                f"{shown(path)} is not a kind of file that a model is loaded from: give a run "
                f"folder or a {kinds} file"
            )
        return cls(_KINDS.get(kind, load_checkpoint)(path), device=device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the model's outputs."""
        return self.card.class_names

    @property
    def preprocess(self) -> Preprocess:
        """What the model expects of its input; calls of the predictor apply it."""
        return self.card.preprocess

    def __call__(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int = 64,
        value_range: Sequence[float] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Predict images, one or many.

        - Paths: files, and folders, of which all images are taken. URLs are refused.
        - PIL images of any mode.
        - NumPy arrays (H, W) or (H, W, C) with 1, 3 (RGB) or 4 (RGBA) channels, and batches
          (B, H, W, C). Values of uint8 are 0 (black) to 255 (white). Other integers and floats are
          read as those of image files: by ``value_range``, or else by the range of the training,
          or else uint16 as 0 to 65535 and floats by a range that is decided from the image.
        - Tensors (H, W), (C, H, W) or (B, C, H, W) of uint8, or of floats from 0 (black) to 1
          (white), which ``value_range`` does not change. They are rounded to 8 bits.
        - A list, generator or other iterable of these, also of several kinds.

        An image that cannot be read does not end the call: its prediction has an ``error``, and
        raises `ValueError` where its result is used. Mistakes in the arguments raise; those in a
        list before the first image is read, those in a generator when it comes to them.

        Args:
            images: what is predicted.
            batch_size: images at a time; the result does not depend on it, up to rounding.
            value_range: of float images and those of more than 8 bits, the values that become
                black and white; by default those of the training.
            **options: of the task. Classification takes ``top_k`` (5), the number of classes.

        Returns:
            A `Prediction` per image, in the order of the images.

        Raises:
            FileNotFoundError: a path does not exist.
            TypeError: an image is of an unknown type.
            ValueError: a wrong shape, type or range of values, a URL, a folder without images, or
                an unknown option.

        Warns:
            UserWarning: the values of images do not fit the range of the training, or files in
                folders were passed over.
        """
        found = self.stream(images, batch_size=batch_size, value_range=value_range, **options)
        predictions: list[Prediction] = list(found)
        for note in found.notes:
            warnings.warn(note, stacklevel=2)
        return predictions

    def stream(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int = 64,
        value_range: Sequence[float] | None = None,
        **options: Any,
    ) -> Predictions:
        """Return an iterator over the predictions, which reads and computes batch by batch.

        Its ``notes`` has at the end what a call warns of. Arguments and errors are those of a call.
        An image of a generator is not kept for `Prediction.draw`, unless it is a file.
        """
        return Predictions(
            self._task,
            self.model,
            self.card,
            self.device,
            images,
            batch_size=batch_size,
            value_range=value_range,
            options=options,
        )

    def __repr__(self) -> str:
        card = self.card
        return (
            f"Predictor({card.task}, {card.model}, {len(card.class_names)} classes, {self.device})"
        )
