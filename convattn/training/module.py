"""The Lightning module of every task: training step, validation step, optimiser."""

from __future__ import annotations

import random
import time
from typing import Any, Self, cast

import lightning.pytorch as pl
import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric

from convattn.data import Batch
from convattn.runs.card import ModelCard
from convattn.training.batch_norm import set_batch_norm
from convattn.training.config import RunConfig
from convattn.training.data import TaskData
from convattn.training.evaluate import readable, sizes_of
from convattn.training.optimizer import build_optimizer, build_schedule, rate_factor
from convattn.training.task import Step, Task

_LARGEST_RATE = 10.0  # for a larger learning rate an error proposes _SAFE_RATE, not lr / 4
_SAFE_RATE = 1e-4


class TrainingDivergedError(RuntimeError):
    """A loss or a weight became NaN or infinite."""


class TaskModule(pl.LightningModule):
    """A model with its task's losses and metrics, optimiser, schedule and average of weights.

    Each training step seeds its random numbers from the configuration's seed and the step's
    number, so that a resumed training draws the numbers of an uninterrupted one.

    Args:
        task: computes losses and outputs.
        model: the network.
        card: the model card.
        data: has the batches and the number of updates per epoch.
    """

    def __init__(self, task: Task[Any], model: nn.Module, card: ModelCard, data: TaskData) -> None:
        super().__init__()
        self.task = task
        self.config: RunConfig = task.config
        self.model = model
        self.card = card
        self.data = data
        self.ema = _build_ema(model, self.config)
        self.meter = task.meter(card)
        names = [column.name for column in task.columns(task.method)]
        self._train_names = [name for name in names if name.startswith("train_")]
        for name in self._train_names:
            metric = MeanMetric(nan_strategy="disable")  # see _check_finite
            metric.persistent(True)  # checkpoints within an epoch store its means
            self.add_module(name, metric)
        self._seen = 0
        self._first_batch = 0.0
        self._seconds = 0.0
        self._norms = set_batch_norm(model, self.config.batch_norm)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the module; a cast to bfloat16 leaves the numbers of the metrics alone.

        Metrics of torchmetrics ignore ``bfloat16()``, but not ``to(dtype=torch.bfloat16)``, which
        Lightning calls for precision=bf16-true.
        """
        if not args and kwargs == {"dtype": torch.bfloat16}:
            return self.bfloat16()
        return super().to(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with ``batch_norm=eval`` or ``frozen`` batch norms stay in evaluation."""
        super().train(mode)
        for norm in self._norms if mode else ():
            norm.eval()
        return self

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and saved: with ``ema`` the one with averaged weights."""
        return self.model if self.ema is None else self.ema.module

    @property
    def learning_rate(self) -> float:
        """The largest learning rate in use."""
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def train_means(self) -> dict[str, float]:
        """Return the means of the epoch so far in this process, by the names of their columns.

        ``MeanMetric.compute`` would wait for the other processes, which do not print the means.
        """
        metrics = self._train_metrics().items()
        return {name: float(metric.mean_value / metric.weight) for name, metric in metrics}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of this step."""
        if not self._seen:
            self._first_batch = time.perf_counter()
        seed = hash((self.config.seed, self.current_epoch, batch_idx, self.global_rank)) % 2**31
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        step = self.task.losses(self.model, self._in_layout(batch), self.current_epoch)
        loss = step.loss
        self._count(step, loss, len(batch["index"]))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # not yet incremented

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Raise `TrainingDivergedError` if the loss is NaN or infinite."""
        self._seen += len(batch["index"]) * self.trainer.world_size
        self._seconds = time.perf_counter() - self._first_batch
        if batch_idx % 10 == 0 or self.trainer.is_last_batch:
            self._check_finite(
                outputs["loss"], f"epoch {self.current_epoch + 1}, batch {batch_idx + 1}"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of held-out images to the metrics."""
        images = self._in_layout(batch)["image"]
        outputs = self.task.outputs(self.evaluated, images, sizes_of(batch), self.card)
        outputs, targets, _ = readable(outputs, batch)
        if len(targets):
            self.meter.update(*self.task.kept(outputs, targets))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the epoch, of its training and validation.

        Raises:
            TrainingDivergedError: the loss or a weight is NaN or infinite; the epoch is not saved.
        """
        if not self.trainer.sanity_checking:
            self._check_weights(f"epoch {self.current_epoch + 1}")
        for name, value in self.meter.compute().items():
            self.log(f"val_{name}", value)
            if name == "loss" and not self.trainer.sanity_checking:
                self._check_finite(value, f"the validation of epoch {self.current_epoch + 1}")
        self.meter.reset()
        if not self.trainer.sanity_checking:
            for name, metric in self._train_metrics().items():
                self.log(name, metric.compute())
                metric.reset()
            self.log("lr", self.learning_rate)
            self.log("images_per_second", self._seen / max(self._seconds, 1e-9))
            self._seen = 0

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the schedule."""
        factor = rate_factor(self.config, self.data.images_per_update)
        optimizer = build_optimizer(self.config, self.model, factor)
        schedule = build_schedule(self.config, optimizer, self.data.plan, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Ignore the saved schedule, and convert the accuracy in checkpoints of convattn 0.1.

        The schedule is a function of the number of updates and of the configuration, which may
        have more epochs than before. convattn 0.1 stored counts of images; they become a mean.
        """
        checkpoint["lr_schedulers"] = [{} for _ in checkpoint["lr_schedulers"]]
        state = checkpoint["state_dict"]
        if "train_acc.tp" in state:
            right, missed = state.pop("train_acc.tp"), state.pop("train_acc.fn")
            for key in ("train_acc.fp", "train_acc.tn"):
                state.pop(key, None)
            state["train_acc.mean_value"] = right.float()
            state["train_acc.weight"] = (right + missed).float()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step timm's schedule, which takes the number of updates."""
        scheduler.step_update(num_updates=self.global_step)

    def _train_metrics(self) -> dict[str, MeanMetric]:
        return {name: cast(MeanMetric, getattr(self, name)) for name in self._train_names}

    def _count(self, step: Step, loss: Tensor, images: int) -> None:
        """Update the means of the losses over batches and of the measures over images."""
        for name, metric in self._train_metrics().items():
            key = name.removeprefix("train_")
            if key in step.measures:
                metric.update(step.measures[key].detach(), weight=images)
            else:
                metric.update((loss if key == "loss" else step.losses[key]).detach())

    def _in_layout(self, batch: Batch) -> Batch:
        if not self.config.channels_last:
            return batch
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        return {**batch, "image": image}

    def _check_finite(self, loss: Tensor, where: str) -> None:
        if not loss.isfinite():
            raise self._diverged(f"the loss became {loss.item()}", where)

    def _check_weights(self, where: str) -> None:
        for model in {self.model, self.evaluated}:
            for name, value in model.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise self._diverged(f"the weight {name} became NaN or infinite", where)

    def _diverged(self, what: str, where: str) -> TrainingDivergedError:
        rate = self.config.lr / 4 if self.config.lr <= _LARGEST_RATE else _SAFE_RATE
        return TrainingDivergedError(
            f"{what} in {where}, at a learning rate of {self.learning_rate:.2g}. Try a lower lr "
            f"(lr={rate:.2g}), clip_grad=1, a longer warm-up, or precision=32"
        )


def _build_ema(model: nn.Module, config: RunConfig) -> ModelEmaV3 | None:
    if not config.ema:
        return None
    average = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
    average.requires_grad_(False)
    return average
