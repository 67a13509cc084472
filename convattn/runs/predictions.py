"""The prediction of a model for one image: plain values, JSON, and a drawing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from PIL import Image

from convattn.data import Input, Ranges
from convattn.data.images import to_8bit
from convattn.names import shown
from convattn.runs.labels import draw_label


@dataclass(frozen=True)
class Original:
    """A predicted image, and the ranges of values with which it is read."""

    image: Input
    ranges: Ranges


@dataclass(frozen=True, kw_only=True)
class Prediction(ABC):
    """The prediction of a model for one image; each task has its own subclass.

    Args:
        path: path of the image; "image 3" for the fourth image if it is not a file.
        size: width and height of the upright image; (0, 0) where it could not be read.
        error: why there is no result; "" where there is one.
        original: the image, for `draw`; None if it is not stored.
    """

    task: ClassVar[str]
    heading: ClassVar[str] = "best"

    path: str
    size: tuple[int, int]
    error: str = ""
    original: Original | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as values that JSON can represent.

        Every prediction has the keys "path", "task", "size" ([width, height]) and "error", the
        last one None if there is a result. A result also has the keys of its task.
        """
        values = {
            "path": self.path,
            "task": self.task,
            "size": list(self.size),
            "error": self.error or None,
        }
        return values if self.error else {**values, **self._values()}

    def draw(self, image: Image.Image | None = None) -> Image.Image:
        """Return the image in RGB with the result drawn on it.

        Args:
            image: the image in any size; by default the predicted image is read again.

        Raises:
            ValueError: there is no result, or the image is not stored.
        """
        self.check()
        found = self._original() if image is None else to_8bit(image)
        found = found.convert("RGB")  # a copy: the caller's image stays as it is
        return self._drawn(found)

    @classmethod
    def of_nan(cls, size: tuple[int, int]) -> Self:
        """Return the prediction of an image of this size for which the model computed NaN."""
        return cls(path="", size=size, error="the model computed NaN for this image")

    @property
    def shown_labels(self) -> Sequence[int]:
        """The class numbers whose colours are in the drawing."""
        return ()

    def check(self) -> None:
        """Raise `ValueError` if there is no result."""
        if self.error:
            raise ValueError(f"there is no prediction for {shown(self.path)}: {self.error}")

    def cells(self) -> Sequence[str]:
        """Return the result as short texts, the cells of a row."""
        self.check()
        return self._cells()

    def _original(self) -> Image.Image:
        if self.original is None:
            raise ValueError(
                f"{shown(self.path)} is not stored, because it is from a generator: pass the "
                "image, draw(image)"
            )
        return self.original.image.read(self.original.ranges)[0]

    def overlay(self, image: Image.Image) -> Image.Image:
        """Return an RGB image with the result drawn on it, of the same size and without a legend.

        Args:
            image: the predicted image in any size.
        """
        self.check()
        return self._overlay(image.convert("RGB"))

    def _overlay(self, image: Image.Image) -> Image.Image:
        return self._drawn(image)

    def to_png(self) -> Image.Image:
        """Return the predicted masks at the size of the image, for a PNG file.

        Raises:
            ValueError: there is no result, or the result has no masks.
        """
        self.check()
        return self._masks()

    def _masks(self) -> Image.Image:
        raise ValueError(
            f"a prediction of {self.task} has no masks; models of the task segmentation and of "
            "the methods mask_rcnn and cascade_mask_rcnn have"
        )

    @abstractmethod
    def _values(self) -> dict[str, Any]:
        """Return the keys and values of the task's result."""

    @abstractmethod
    def _cells(self) -> Sequence[str]:
        """Return the cells of the task's result."""

    @abstractmethod
    def _drawn(self, image: Image.Image) -> Image.Image:
        """Return the RGB image with the task's result drawn on it."""


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ClassPrediction(Prediction):
    """The most probable classes of one image.

    `to_dict` has the key "guesses": a list of {"name", "probability"}, the most probable first.

    Args:
        guesses: classes and probabilities, the most probable first.
    """

    task = "classification"

    guesses: tuple[Guess, ...] = ()

    @property
    def label(self) -> str:
        """The name of the most probable class."""
        self.check()
        return self.guesses[0].name

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        self.check()
        return self.guesses[0].probability

    def _values(self) -> dict[str, Any]:
        guesses = [{"name": g.name, "probability": g.probability} for g in self.guesses]
        return {"guesses": guesses}

    def _cells(self) -> Sequence[str]:
        return [f"{shown(guess.name)} {guess.probability:.1%}" for guess in self.guesses]

    def _drawn(self, image: Image.Image) -> Image.Image:
        return draw_label(image, self.label, self.probability)
