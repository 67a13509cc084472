"""What detection and segmentation share: a model on a backbone, and batches of padded images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from convattn.data import (
    Batch,
    JointAugment,
    Preprocess,
    Sample,
    Transform,
    collate_padded,
    joint_eval_transform,
    joint_train_transform,
    padded_size,
)
from convattn.models.dense import DenseModel
from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.training.backbone import build_supported
from convattn.training.config import RunConfig, data_options
from convattn.training.dense_start import start_from
from convattn.training.task import Built, ConfigT, Task
from convattn.training.trained import named_model

_TRIAL_SIDE = 256  # height and width at most of the blank image that is computed at the start


class DenseTask(Task[ConfigT]):
    """A task whose model is a `DenseModel`, on images that are padded to one size.

    Attributes:
        build_method: builds a model from the names of the method and of the backbone, the number of
            classes, ``in_chans``, ``backbone_args``, and what `model_settings` returns.
    """

    images_at_once = 4
    build_method: ClassVar[Callable[..., DenseModel]]

    @abstractmethod
    def model_settings(self) -> dict[str, Any]:
        """Return the arguments of ``build_method`` that the configuration sets, as JSON values.

        Raises:
            ValueError: a setting contradicts another one, the method or the data.
        """

    @abstractmethod
    def preprocess(self, model: DenseModel, in_chans: int) -> Preprocess:
        """Return the size of the input, with the normalisation of the backbone."""

    @abstractmethod
    def augmentation(self) -> JointAugment:
        """Return the augmentation of training images."""

    def build(self) -> Built:
        """Build the model with its initial weights.

        Raises:
            ValueError: an unknown model, a setting that it does not have, images of this size do
                not fit it, or ``init`` is a checkpoint of another model.
        """
        config, source = self.config, self.source
        in_chans = config.in_chans or source.in_chans
        settings = self.model_settings()
        create = partial(
            type(self).build_method,
            self.method,
            config.model,
            source.num_classes,
            in_chans=in_chans,
            **settings,
        )
        model, arguments, notes = _build(config, create)
        card = ModelCard(
            task=config.task,
            method=self.method,
            model=config.model,
            model_args={**settings, "backbone_args": arguments},
            class_names=source.class_names,
            preprocess=self.preprocess(model, in_chans),
            value_range=source.value_range,
            data=config.data,
            data_options=data_options(config),
        )
        if config.init is not None:
            notes.insert(0, start_from(model, config.init, card, source, self._names_by_class))
        _check_forward(model, card)
        return Built(model, card, tuple(notes))

    @classmethod
    def rebuild(cls, card: ModelCard) -> DenseModel:
        """Return the model that a card describes, without trained weights."""
        return cls._rebuild(card, len(card.class_names))

    def train_transform(self, preprocess: Preprocess) -> Transform:
        """Return the random transform of training images and their targets."""
        return joint_train_transform(preprocess, self.augmentation())

    @classmethod
    def eval_transform(cls, preprocess: Preprocess) -> Transform:
        """Return the fixed transform of evaluation, which changes the image only."""
        return joint_eval_transform(preprocess)

    @classmethod
    def collate(cls, samples: list[Sample]) -> Batch:
        """Pad the images of samples to one size."""
        return collate_padded(samples)

    @classmethod
    def _rebuild(cls, card: ModelCard, num_classes: int) -> DenseModel:
        in_chans = card.preprocess.input_size[0]
        return cls.build_method(
            card.method, card.model, num_classes, in_chans=in_chans, **card.model_args
        )

    @classmethod
    def _names_by_class(cls, card: ModelCard) -> set[str]:
        """Return the names of the tensors whose shape depends on the number of classes."""
        with torch.device("meta"):
            one, two = (cls._rebuild(card, count).state_dict() for count in (1, 2))
        return {name for name, value in one.items() if value.shape != two[name].shape}


def chosen_settings(
    config: RunConfig, names: Sequence[str], known: Collection[str]
) -> dict[str, Any]:
    """Return the arguments of a method's model that the configuration sets, as JSON values.

    Args:
        config: has the settings; those that are None keep the default of the method.
        names: settings that are arguments of some method's model.
        known: arguments that this method's model has; other settings of a recipe are left out.

    Raises:
        ValueError: the user gave a setting that the method does not have.
    """
    given = {key: value for key in names if (value := getattr(config, key)) is not None}
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    for key, value in values.items():
        if key not in known and key in config.model_fields_set:
            raise ValueError(
                f"{getattr(config, 'method', config.task)} has no setting {key}, which "
                f"{key}={shown(value)} sets; leave it out"
            )
    return {key: value for key, value in values.items() if key in known}


def _build(
    config: RunConfig, create: Callable[..., DenseModel]
) -> tuple[DenseModel, dict[str, Any], list[str]]:
    """Build a model, with timm's published weights if ``config.pretrained`` is set.

    Args:
        config: has the name of the backbone and its arguments.
        create: builds the model; its argument ``backbone_args`` holds the arguments of the
            backbone.

    Returns:
        The model, the arguments of the backbone without ``pretrained``, and sentences on the
        weights and on settings that were left out.
    """
    weights = {"pretrained": True} if config.pretrained else {}

    def with_backbone(**arguments: Any) -> DenseModel:
        return create(backbone_args={**arguments, **weights})

    model, arguments, notes = build_supported(config, with_backbone)
    assert isinstance(model, DenseModel)
    if weights:
        text = f"pretrained weights of {config.model} loaded into the backbone"
        notes.insert(0, f"{text}; all other weights are random")
    return model, arguments, notes


@torch.no_grad()
def _check_forward(model: DenseModel, card: ModelCard) -> None:
    """Run the model on a blank image: an error comes before anything is written.

    Args:
        model: is in training mode afterwards.
        card: has the size of the input; the image has sides of at most 256 pixels.

    Raises:
        ValueError: the model does not support the images.
    """
    channels, *sides = card.preprocess.input_size
    size = padded_size(*(min(side, _TRIAL_SIDE) for side in sides))
    try:
        model.eval()(torch.zeros(1, channels, *size))
    except Exception as error:
        raise ValueError(
            f"{named_model(card)} does not support images of {'x'.join(map(str, size))}; choose "
            f"another img_size, or another model ({error})"
        ) from error
    finally:
        model.train()
