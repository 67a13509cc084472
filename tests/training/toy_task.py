"""A second task for the tests of the engine: how bright is an image, and how much does it vary?

It has no classes. Its targets are lists, its metrics and its rule for the best epoch its own, and a
lower error is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from convattn.data import (
    Batch,
    DataSource,
    ImageSet,
    Preprocess,
    Sample,
    Transform,
    collate_lists,
)
from convattn.runs.card import ModelCard
from convattn.runs.metrics import Column
from convattn.training.config import RunConfig, data_options, setting
from convattn.training.evaluation import Found, TaskEvaluation
from convattn.training.task import Built, Step, Task


class BrightnessConfig(RunConfig):
    """The settings of the training."""

    task: Literal["brightness"] = setting("brightness", "what the model is trained for")
    model: str = setting("linear", "name of the model")
    power: int = setting(1, "exponent of the error")


class LinearModel(nn.Module):
    """Two numbers from the mean and the mean square of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        flat = x.flatten(1)
        return list(self.head(torch.stack([flat.mean(1), flat.square().mean(1)], 1)))


@dataclass(frozen=True, kw_only=True)
class BrightnessEvaluation(TaskEvaluation):
    """The mean error, and the brightness of each image."""

    prediction_columns: ClassVar[tuple[str, ...]] = ("index", "path", "brightness", "spread")

    error: float
    predictions: list[dict[str, Any]]

    def headline(self) -> list[tuple[str, str]]:
        return [("error", f"{self.error:.4f}")]

    def best_line(self) -> str:
        return f"an error of {self.error:.4f}"

    def prediction_rows(self) -> Sequence[Mapping[str, Any]]:
        return self.predictions


class ErrorMeter(Metric):
    """The mean absolute error of lists of outputs and targets."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: list[dict[str, Tensor]], targets: list[Tensor]) -> None:
        assert isinstance(outputs, list)
        assert isinstance(targets, list)
        for output, target in zip(outputs, targets, strict=True):
            self.total += (output["found"] - target).abs().mean()
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        return {"error": (self.total / self.count).float()}


class Brightness(Task[BrightnessConfig]):
    """Regression of two numbers of an image."""

    name = "brightness"
    config_class = BrightnessConfig
    best = ("-val_error",)
    fixed = ("power",)

    @classmethod
    def columns(cls, method: str = "") -> tuple[Column, ...]:
        return (
            Column("train_fit", "fit", "loss"),
            Column("train_bias", "bias", "loss"),
            Column("val_error", "error", "loss"),
        )

    def build(self) -> Built:
        card = ModelCard(
            model=self.config.model,
            model_args={},
            class_names=(),
            preprocess=Preprocess((3, 8, 8), (0.0,) * 3, (1.0,) * 3),
            data=self.config.data,
            data_options=data_options(self.config),
            task=self.name,
        )
        return Built(self.rebuild(card), card)

    def train_transform(self, preprocess: Preprocess) -> Transform:
        return measured

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> Step:
        outputs, targets = torch.stack(model(batch["image"])), torch.stack(batch["target"])
        bias = (outputs - targets).mean().abs()
        return Step({"fit": F.mse_loss(outputs, targets), "bias": bias})

    @classmethod
    def eval_transform(cls, preprocess: Preprocess) -> Transform:
        return measured

    @classmethod
    def collate(cls, samples: list[Sample]) -> Batch:
        return collate_lists(samples)

    @classmethod
    def rebuild(cls, card: ModelCard) -> nn.Module:
        return LinearModel()

    @classmethod
    def outputs(  # type: ignore[override]  # no options
        cls,
        model: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        card: ModelCard,
    ) -> list[Tensor]:
        assert card.task == cls.name
        assert all(size == (9, 9) for size in sizes)
        found: list[Tensor] = model(images)
        return found

    @classmethod
    def kept(cls, outputs: list[Tensor], targets: list[Tensor]) -> tuple[Any, Any]:
        return [{"found": output} for output in outputs], targets

    @classmethod
    def predict(cls, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    def meter(self, card: ModelCard) -> Metric:
        return ErrorMeter()

    @classmethod
    def summarise(
        cls, card: ModelCard, data: DataSource, images: ImageSet, found: Found
    ) -> BrightnessEvaluation:
        outputs = [output["found"] for batch in found.outputs for output in batch]
        targets = [target for batch in found.targets for target in batch]
        errors = [(a - b).abs().mean() for a, b in zip(outputs, targets, strict=True)]
        return BrightnessEvaluation(
            model=card.model,
            data=data.name,
            split=found.split,
            images=len(outputs),
            images_per_second=found.images_per_second,
            parameters=found.parameters,
            broken=found.broken,
            notes=found.notes,
            epoch=card.epoch,
            error=float(torch.stack(errors).mean()),
            predictions=[
                {
                    "index": n,
                    "path": images.path(n),
                    "brightness": float(o[0]),
                    "spread": float(o[1]),
                }
                for n, o in zip(found.numbers, outputs, strict=True)
            ],
        )


def measured(image: Image.Image, target: Any) -> tuple[Tensor, Tensor]:
    """Return a small image, and its mean and mean square as the target."""
    pixels = np.asarray(image.convert("RGB").resize((8, 8)), np.float32) / 255
    values = torch.from_numpy(pixels).permute(2, 0, 1)
    return values, torch.stack([values.mean(), values.square().mean()])


def write_grey(folder: Path, count: int = 16) -> Path:
    """Write images of several brightnesses, in two folders."""
    for number in range(count):
        path = folder / "grey" / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number * 15,) * 3).save(path)
    return folder / "grey"


def brightness(folder: Path, **changes: Any) -> BrightnessConfig:
    """Return the configuration of a run on the images that `write_grey` wrote there."""
    values: dict[str, Any] = {
        "data": f"folder:{folder / 'grey'}", "runs": str(folder / "runs"), "epochs": 3,
        "batch_size": 4, "lr": 0.05, "warmup_epochs": 0, "workers": 0, "threads": 1,
        "tensorboard": False, "accelerator": "cpu", "val_fraction": 0.25,
    }  # fmt: skip
    return BrightnessConfig(**{**values, **changes})
