"""`Predictor`: a trained model that is loaded from a file and called with images."""

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
from convattn.training.options import predict_options
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

    Any number of threads can share a predictor. A call changes neither the predictor, nor the
    random number generators, nor the number of threads of PyTorch.

    Args:
        checkpoint: what `convattn.tasks.classification.load_checkpoint` returned. Its model is
            used if it is in evaluation mode and on the device, and else copied; it never changes.
        device: "auto" takes a GPU if there is one.

    Attributes:
        model: the network, in evaluation mode on the device.
        card: the model card.
        device: the device of the model.
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
            source: a run folder, whose best checkpoint is loaded, or a .safetensors or .ckpt file;
                also what `convattn.tasks.classification.load_checkpoint` returned.
            device: "auto" takes a GPU if there is one.

        Raises:
            FileNotFoundError: there is no such file or folder, or the folder has no checkpoint.
            ValueError: the file has another format, is damaged, or convattn did not write it.
        """
        if isinstance(source, Checkpoint):
            return cls(source, device=device)
        path = Path(source).expanduser()
        kind = "" if path.is_dir() else path.suffix.lower()
        if path.exists() and kind not in _KINDS:
            kinds = " or ".join(kind for kind in _KINDS if kind)
            raise ValueError(
                f"{shown(path)} has no format of a trained model: give a run folder or a "
                f"{kinds} file"
            )
        return cls(_KINDS.get(kind, load_checkpoint)(path), device=device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the model's outputs."""
        return self.card.class_names

    @property
    def heading(self) -> str:
        """What the cells of a prediction are, the heading of a table."""
        return self._task.prediction_class.heading

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that a call takes for this task, such as "top_k"."""
        return tuple(predict_options(self._task))

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the model's input; a call of the predictor applies it."""
        return self.card.preprocess

    def __call__(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int | None = None,
        value_range: Sequence[float] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Predict images, one or many.

        - Paths of files, and of folders, whose images are all predicted. URLs are an error.
        - PIL images of any mode.
        - NumPy arrays (H, W) or (H, W, C) with 1, 3 (RGB) or 4 (RGBA) channels, and batches
          (B, H, W, C). Values of uint8 are 0 (black) to 255 (white). Other integers and floats are
          read as those of image files: by ``value_range``, or else by the range of the training,
          or else uint16 as 0 to 65535 and floats by a range that is computed from the image.
        - Tensors (H, W), (C, H, W) or (B, C, H, W) of uint8, or of floats from 0 (black) to 1
          (white), which ``value_range`` does not change. They are rounded to 8 bits.
        - A list, generator or other iterable of these, also of several kinds.

        An image that cannot be read does not end the call: its prediction has an ``error``, and
        raises `ValueError` when its result is read. Wrong arguments raise an error, in a list
        before the first image is read, in a generator when the generator yields them.

        Args:
            images: the images to predict.
            batch_size: images at a time; the result does not depend on it, up to rounding. By
                default that of the task: 64, or 4 of detection and segmentation.
            value_range: the values of black and white in float images and images of more than 8
                bits; by default those of the training.
            **options: options of the task. Classification has ``top_k`` (5), the number of
                classes. Detection has ``score`` and ``nms``; segmentation has ``inference``,
                ``window``, ``window_stride`` and ``flip``; by default they are the training's.

        Returns:
            A `Prediction` per image, in the order of the images.

        Raises:
            FileNotFoundError: a path does not exist.
            TypeError: an image is of an unknown type.
            ValueError: a wrong shape, type or range of values, a URL, a folder without images, or
                an unknown option.

        Warns:
            UserWarning: the values of images do not fit the range of the training, or files in
                folders were skipped.
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
        batch_size: int | None = None,
        value_range: Sequence[float] | None = None,
        **options: Any,
    ) -> Predictions:
        """Return an iterator over the predictions, which reads and computes batch by batch.

        Arguments and errors are those of a call. After the last prediction ``notes`` of the
        iterator has the texts that a call warns with. `Prediction.draw` can draw an image of a
        generator only if it is a file.
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
