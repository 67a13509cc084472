from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convattn.data import ImageOnly, Preprocess, Transform, eval_transform
from convattn.runs.card import ModelCard
from convattn.runs.predictions import ClassPrediction, Guess, Prediction
from convattn.training.config import RunConfig
from convattn.training.predict import Predictions, ready, split
from convattn.training.task import Task
from tests.data.class_folders import write_broken

CPU = torch.device("cpu")
CARD = ModelCard("mean", {}, (), Preprocess((3, 4, 4), (0.0,) * 3, (1.0,) * 3), task="brightness")


@dataclass(frozen=True, kw_only=True)
class Brightness(Prediction):
    """The mean of an image: a prediction without classes."""

    task = "brightness"

    value: float = 0.0

    def _values(self) -> dict[str, Any]:
        return {"value": round(self.value, 5)}

    def _cells(self) -> list[str]:
        return [f"{self.value:.1f}"]

    def _drawn(self, image: Image.Image) -> Image.Image:
        return image


class BrightnessTask(Task[RunConfig]):
    """A task of which only the methods for prediction are called."""

    name = "brightness"
    prediction_class = Brightness

    @classmethod
    def eval_transform(cls, preprocess: Preprocess) -> Transform:
        return ImageOnly(eval_transform(preprocess))

    @classmethod
    def predict(  # type: ignore[override]
        cls,
        model: nn.Module,
        images: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
        *,
        factor: float = 1.0,
    ) -> list[Brightness]:
        values = (model(images).mean((1, 2, 3)) * factor).tolist()
        return [
            Brightness(path="", size=size, value=v) for size, v in zip(sizes, values, strict=True)
        ]


def predictions(images: Any, **options: Any) -> Predictions:
    return Predictions(
        cast(Any, BrightnessTask), nn.Identity(), CARD, CPU, images, batch_size=2, value_range=None,
        options=options,
    )  # fmt: skip


def test_a_task_without_classes_has_its_own_predictions_and_options(tmp_path: Path) -> None:
    path = write_broken(tmp_path / "b.png")
    images = [np.full((4, 5), value, np.uint8) for value in (0, 51, 255)]
    found = list(predictions([images[0], images[1], path, images[2]], factor=10))
    assert [p.to_dict() for p in found[:2]] == [
        {"path": "image 0", "task": "brightness", "size": [5, 4], "error": None, "value": 0.0},
        {"path": "image 1", "task": "brightness", "size": [5, 4], "error": None, "value": 2.0},
    ]
    assert isinstance(found[2], Brightness)
    assert found[2].error == "not an image but a text file"
    assert found[3].cells() == ["10.0"]
    assert found[3].draw().size == (5, 4)
    with pytest.raises(ValueError, match=r"unknown option of brightness 'top_k'.* Known: 'factor'"):
        predictions(images, top_k=3)


def test_a_model_that_is_ready_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    assert ready(model, CPU) is model


def test_another_model_is_copied_and_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    model[1].train()
    found = ready(model, CPU)
    assert not found[1].training  # type: ignore[index]
    assert model[1].training
    moved = ready(model.eval(), torch.device("meta"))
    assert next(moved.parameters()).is_meta
    assert not next(model.parameters()).is_meta


def test_failures_are_apart_unless_there_is_nothing_else() -> None:
    good = ClassPrediction(path="a", size=(1, 1), guesses=(Guess("cat", 1.0),))
    bad = ClassPrediction(path="b", size=(0, 0), error="it is empty")
    images, broken = split([good, bad])
    assert images == [good]
    assert [(file.path, file.reason) for file in broken] == [("b", "it is empty")]
    with pytest.raises(ValueError, match=r"none of the 2 images .*: b: it is empty"):
        split([bad, bad])
    assert split([]) == ([], [])


def test_the_batches_are_as_large_as_the_task_says_unless_the_caller_says_so() -> None:
    sizes: list[int] = []

    class Few(BrightnessTask):
        images_at_once = 2

        @classmethod
        def predict(cls, model: nn.Module, images: torch.Tensor, *rest: Any, **more: Any) -> Any:
            sizes.append(len(images))
            return super().predict(model, images, *rest, **more)

    images = [np.full((4, 4), 9, np.uint8)] * 5
    for batch_size in (None, 4):
        found = Predictions(
            cast(Any, Few), nn.Identity(), CARD, CPU, images, batch_size=batch_size,
            value_range=None, options={},
        )  # fmt: skip
        assert len([*found]) == 5
    assert sizes == [2, 2, 1, 4, 1]
