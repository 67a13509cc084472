"""The interface of a task, such as classification, to the training engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn
from torchmetrics import Metric

from convattn.data import (
    Batch,
    DataSource,
    ImageSet,
    Preprocess,
    Sample,
    Transform,
    collate_stacked,
)
from convattn.explain.page import Part
from convattn.runs.card import ModelCard
from convattn.runs.metrics import BASE_COLUMNS, Column
from convattn.runs.predictions import Prediction
from convattn.training.config import RunConfig
from convattn.training.evaluation import Found, TaskEvaluation

ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True)
class Built:
    """A model that is ready to train.

    Args:
        model: the network.
        card: the model card, without epoch and metrics.
        start: sentences on the initial weights and on settings that were left out.
        notes: further sentences that are printed at the start.
    """

    model: nn.Module
    card: ModelCard
    start: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """The losses and measures of one training batch.

    Args:
        losses: scalars by name; training minimises their sum.
        measures: means over the batch's images by name, such as the accuracy.
    """

    losses: Mapping[str, Tensor]
    measures: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The sum of the losses."""
        first, *others = self.losses.values()
        return sum(others, first)


class Task(ABC, Generic[ConfigT]):
    """One kind of training, such as classification, for the engine in `convattn.training`.

    An instance belongs to one training run. Evaluation and prediction use class methods, which
    need only the `ModelCard` of a trained model. `convattn.Predictor` needs `rebuild`,
    `eval_transform`, `predict` and ``prediction_class``, which returns the JSON values, the row of
    the command line and the drawing.

    Args:
        config: the settings of the run.
        source: the data.

    Attributes:
        name: the name in the configuration, in the model card and on the command line.
        config_class: the class of its settings.
        prediction_class: the class of its predictions.
        best: the rule for the best epoch, see `convattn.runs.metrics.score`.
        fixed: settings that a resumed run cannot change, in addition to those of every task.
        report: the sections of the task in the report of a run, in their order.
        images_at_once: images in a batch of evaluation and prediction, unless a caller says so.
        report_numbers: titles of the evaluation's numbers at the top of the report, by their names;
            None for all of them.
        method: the method of the configuration, such as "mask_rcnn"; "" if the task has none.
        batch_multiple: the number of images in a batch is a multiple of this number.
        repeats: number of copies of each training image in an epoch.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[RunConfig]]
    prediction_class: ClassVar[type[Prediction]]
    best: ClassVar[tuple[str, ...]]
    fixed: ClassVar[tuple[str, ...]] = ()
    report: ClassVar[tuple[Part, ...]] = ()
    images_at_once: ClassVar[int] = 64
    report_numbers: ClassVar[Mapping[str, str] | None] = None

    def __init__(self, config: ConfigT, source: DataSource) -> None:
        self.config = config
        self.source = source

    @classmethod
    @abstractmethod
    def columns(cls, method: str) -> tuple[Column, ...]:
        """Return the metrics of an epoch of a method, in the order of ``metrics.csv``.

        Metrics with names "train_..." are from `losses`, those with names "val_..." from `meter`.

        Args:
            method: as in the model card; "" if the task has no methods.
        """

    @property
    def method(self) -> str:
        """The method of the configuration, "" if the task has no methods."""
        return getattr(self.config, "method", "")

    @property
    def batch_multiple(self) -> int:
        """The divisor of the number of images in a batch, where there are enough images."""
        return 1

    @property
    def repeats(self) -> int:
        """Number of copies of each training image in an epoch (repeated augmentation)."""
        return 1

    # Training

    @abstractmethod
    def build(self) -> Built:
        """Build the model with its initial weights.

        Raises:
            ValueError: the configuration does not fit the model or the data.
        """

    @abstractmethod
    def train_transform(self, preprocess: Preprocess) -> Transform:
        """Return the random transform of training images and their targets."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> Step:
        """Compute the losses of a batch.

        Args:
            model: in training mode.
            batch: on the model's device.
            epoch: from 0.
        """

    def train_forward(self, model: nn.Module, images: Tensor) -> None:
        """Compute the model in training mode as `losses` does, with any targets.

        It shows whether a batch is large enough for the batch norms.

        Args:
            model: a copy in training mode.
            images: (B, C, H, W), blank.
        """
        model(images)

    # Evaluation and prediction

    @classmethod
    @abstractmethod
    def eval_transform(cls, preprocess: Preprocess) -> Transform:
        """Return the fixed transform of images and their targets in evaluation."""

    @classmethod
    def collate(cls, samples: list[Sample]) -> Batch:
        """Stack the images and targets of samples."""
        return collate_stacked(samples)

    @classmethod
    @abstractmethod
    def rebuild(cls, card: ModelCard) -> nn.Module:
        """Return the model that a card describes, without trained weights."""

    @classmethod
    @abstractmethod
    def outputs(
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        **options: Any,
    ) -> Any:
        """Return the outputs of a model in evaluation mode: a tensor (B, ...) or a list of B.

        Further keyword arguments of an implementation are options of an evaluation, and of a call
        of `convattn.Predictor`.

        Args:
            model: on the device of the images.
            images: (B, C, H, W), as `eval_transform` and `collate` return them.
            sizes: width and height of each image before the transform.
            card: the model card.
            **options: options of the task, such as ``flip``; by default those of the training.
        """

    @classmethod
    def kept(cls, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Return what the meter and the evaluation need of the readable images of a batch.

        By default this is both unchanged. A task with large outputs, such as masks, returns less.

        Args:
            outputs: what `outputs` returned, a tensor (B, ...) or a list of B.
            targets: the targets of the same images, on the CPU or on the device of the outputs.

        Returns:
            For each image the output and the target; an evaluation moves their tensors to the CPU.
        """
        return outputs, targets

    @classmethod
    @abstractmethod
    def predict(
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        **options: Any,
    ) -> Sequence[Prediction]:
        """Return the predictions of a model in evaluation mode for a batch of images.

        The engine adds the paths. Further keyword arguments of an implementation are options of
        a call of `convattn.Predictor`.

        Args:
            model: on the device of the images.
            images: (B, C, H, W), as `eval_transform` and `collate` return them.
            sizes: width and height of each image before the transform.
            card: the model card.
            **options: options of the task, such as ``top_k``.
        """

    @abstractmethod
    def meter(self, card: ModelCard) -> Metric:
        """Return the metric of the validation after each epoch.

        Its ``update(outputs, targets)`` takes what `kept` returns for the readable images of a
        batch; ``compute()`` returns scalars by the names in `columns`, without "val_".
        """

    @classmethod
    @abstractmethod
    def summarise(
        cls, card: ModelCard, data: DataSource, images: ImageSet, found: Found
    ) -> TaskEvaluation:
        """Return the metrics of the outputs for all images."""


def all_columns(task: Task[Any]) -> tuple[Column, ...]:
    """Return the columns of ``metrics.csv``: epoch, step, learning rate, the task's, the speed."""
    *first, speed = BASE_COLUMNS
    return (*first, *task.columns(task.method), speed)
