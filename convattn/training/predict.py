"""Predictions of a trained model of any task for single images."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convattn.checks import check_positive
from convattn.data import (
    READABLE,
    SET_RANGE,
    AnyImage,
    BrokenFile,
    BrokenImageError,
    Input,
    Sample,
    Survey,
    ValueRange,
    check_range,
    find_broken,
    find_inputs,
    spread,
)
from convattn.data.value_range import named
from convattn.names import counted, shown
from convattn.runs.card import ModelCard
from convattn.runs.predictions import Original, Prediction
from convattn.training.options import check_options, predict_options
from convattn.training.task import Task
from convattn.training.trained_data import EARLIER_RANGE, no_range

_SAMPLE_SIZE = 200  # images that are read for notes on the range of their values


class Predictions(Iterator[Prediction]):
    """An iterator over the predictions of one call, in the order of the images.

    The iterator reads images and computes predictions batch by batch.

    Args:
        task: the task of the model.
        model: in evaluation mode, on ``device``.
        card: the model card.
        device: the device of the model.
        images: see `find_inputs`.
        batch_size: images at a time; None for that of the task.
        value_range: the values of float and deep images that become 0 and 255; by default those
            of the training.
        options: further arguments of the task's ``predict``.

    Attributes:
        total: number of images; None for a generator.
        notes: sentences on how the images were read and on skipped files; empty until the
            iteration ends.

    Raises:
        ValueError: a wrong argument, or an option that the task does not have.
    """

    def __init__(
        self,
        task: type[Task[Any]],
        model: nn.Module,
        card: ModelCard,
        device: torch.device,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int | None,
        value_range: Sequence[float] | None,
        options: dict[str, Any],
    ) -> None:
        batch_size = task.images_at_once if batch_size is None else batch_size
        check_positive("batch_size", batch_size)
        check_options(task, options, predict_options(task))
        self._task, self._model, self._card, self._device = task, model, card, device
        self._options, self._batch_size = options, batch_size
        self._transform = task.eval_transform(card.preprocess)
        self._reader = Reader(card, check_range(value_range))
        self._inputs = find_inputs(images)
        self.total = self._inputs.total
        self.notes: tuple[str, ...] = ()
        self._found = self._all()

    def __next__(self) -> Prediction:
        return next(self._found)

    def _all(self) -> Iterator[Prediction]:
        items = iter(self._inputs.items)
        while batch := list(itertools.islice(items, self._batch_size)):
            yield from self._batch(batch)
        self.notes = (*self._reader.notes(), *self._inputs.notes)

    def _batch(self, batch: list[Input]) -> list[Prediction]:
        found: list[Any] = [None] * len(batch)
        samples: list[Sample] = []
        sizes, places = [], []
        for place, item in enumerate(batch):
            try:
                image = self._reader.read(item)
                tensor, _ = self._transform(image, None)
            except BrokenImageError as error:
                failed = self._task.prediction_class
                found[place] = failed(path=item.name, size=(0, 0), error=error.reason)
                continue
            samples.append(
                Sample(
                    image=tensor,
                    target=0,  # there is none; a number can be stacked
                    index=place,
                    status=READABLE,
                    size=(image.height, image.width),
                )
            )
            sizes.append(image.size)
            places.append(place)
        for place, prediction in zip(places, self._compute(samples, sizes), strict=True):
            item = batch[place]
            kept = Original(item, self._reader.ranges) if self._keeps(item) else None
            found[place] = replace(prediction, path=item.name, original=kept)
        return found

    def _keeps(self, item: Input) -> bool:
        """Return whether the prediction keeps its image; those of a generator could fill memory."""
        return item.is_file or self.total is not None

    @torch.inference_mode()
    def _compute(self, samples: list[Sample], sizes: list[tuple[int, int]]) -> Sequence[Prediction]:
        if not samples:
            return []
        images = self._task.collate(samples)["image"].to(self._device)
        return self._task.predict(self._model, images, sizes, self._card, **self._options)


class Outcome(Protocol):
    """A prediction, or what is kept of one: the path of an image, and why it has no result."""

    @property
    def path(self) -> str:
        """Path of the image."""

    @property
    def error(self) -> str:
        """Why there is no result; "" where there is one."""


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


def split(predictions: Iterable[OutcomeT]) -> tuple[list[OutcomeT], list[BrokenFile]]:
    """Return the predictions that have a result, and the images without a result.

    Raises:
        ValueError: there are images, and none of them has a result.
    """
    found, broken = [], []
    for prediction in predictions:
        if prediction.error:
            broken.append(BrokenFile(prediction.path, prediction.error))
        else:
            found.append(prediction)
    if broken and not found:
        raise ValueError(
            f"none of the {len(broken)} images can be read, the first because: "
            f"{shown(broken[0].path)}: {broken[0].reason}"
        )
    return found, broken


def ready(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model, or a copy of it if needed, in evaluation mode on a device."""
    parts = itertools.chain(model.parameters(), model.buffers())
    if not any(m.training for m in model.modules()) and all(_is_on(p, device) for p in parts):
        return model
    return copy.deepcopy(model).to(device).eval()


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


class Reader:
    """Read images for a trained model; how an image is read does not depend on other images.

    The range of values is ``given``, or else that of the card. Without either, integers of more
    than 8 bits are read as 0 to 65535, and each image of floats by its own values.

    Args:
        card: the model card.
        given: a range of values, or None.
    """

    def __init__(self, card: ModelCard, given: ValueRange | None) -> None:
        self._card = card
        self._given = given
        self._range = given or card.value_range
        self.ranges = {"integer": self._range or EARLIER_RANGE, "float": self._range}
        self._kinds: Counter[str] = Counter()
        self._files = _EvenSample()
        self._in_memory = Survey()

    def read(self, item: Input) -> Image.Image:
        """Return the image as 8-bit grey or RGB.

        Raises:
            BrokenImageError: the image cannot be read.
            ValueError: the values of an array or a tensor have no known range.
        """
        self._check_integers(item)
        image, kind = item.read(self.ranges)
        self._kinds[kind] += 1
        if item.is_file:
            self._files.add(item.name)
        elif self._range is not None and self._in_memory.sizes.total() < _SAMPLE_SIZE:
            self._in_memory.add(item.name, item.info())
        return image

    def _check_integers(self, item: Input) -> None:
        value = item.value
        if not isinstance(value, np.ndarray) or self._range is not None:
            return
        if value.dtype.kind in "iu" and value.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
            raise ValueError(
                f"{item.name}: the range of values of an array of {value.dtype} is not known; give "
                "value_range=(LOW, HIGH), or convert values of 0 to 255 with .astype(np.uint8)"
            )

    def notes(self) -> list[str]:
        """Return sentences on how values were read, once all images are read."""
        return self._notes_without_range() if self._range is None else self._notes(self._range)

    def _notes_without_range(self) -> list[str]:
        texts = {
            "integer": f"of integers of more than 8 bits as {named(EARLIER_RANGE)}",
            "float": "of floats each by its own values",
        }
        parts = [
            f"{counted(self._kinds[k], 'image')} {s}" for k, s in texts.items() if self._kinds[k]
        ]
        if not parts:
            return []
        return [f"read {' and '.join(parts)}, as {no_range(self._card)}; {SET_RANGE}"]

    def _notes(self, used: ValueRange) -> list[str]:
        survey = self._in_memory
        find_broken(spread(self._files.names, _SAMPLE_SIZE), survey, decode=False)
        notes = []
        is_unused = self._given is not None and survey.sizes and not survey.deep_images
        if is_unused or (survey.deep_images and survey.misfit(used)):
            notes.append(survey.note(used, given=True))
        if self._card.value_range is not None and "8-bit" in survey.first:
            notes.append(
                f"images of 8 bits, such as {survey.first['8-bit']}, stay as they are, but the "
                "model was trained on images of floats or of more bits (value_range "
                f"{named(self._card.value_range)})"
            )
        return notes


class _EvenSample:
    """An evenly spaced sample of names, whose number is not known in advance."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._step = 1
        self._seen = 0

    def add(self, name: str) -> None:
        if self._seen % self._step == 0:
            self.names.append(name)
        self._seen += 1
        if len(self.names) == 4 * _SAMPLE_SIZE:
            self.names = self.names[::2]
            self._step *= 2
