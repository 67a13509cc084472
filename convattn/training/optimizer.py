"""timm's optimiser and schedule, and the learning rate for the size of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from convattn.checks import check_choice
from convattn.training.config import RunConfig


def rate_factor(config: RunConfig, images_per_update: int) -> float:
    """Return the factor of lr, warmup_lr and min_lr for a number of images per update.

    The factor is ``images_per_update / lr_batch`` (Goyal et al. 2017, arXiv 1706.02677), or its
    square root with ``lr_growth="sqrt"``, or 1 if the configuration has no ``lr_batch``.
    """
    if config.lr_batch is None:
        return 1.0
    growth = images_per_update / config.lr_batch
    return growth if config.lr_growth == "linear" else growth**0.5


@dataclass(frozen=True)
class Plan:
    """The length of a training.

    Args:
        epochs: number of epochs.
        batches_per_epoch: batches of an epoch on each device.
        updates_per_epoch: updates of the weights in an epoch.
        in_updates: whether the schedule counts updates in place of epochs.
        warmup_steps: updates of the warm-up, where the schedule counts updates.
    """

    epochs: int
    batches_per_epoch: int
    updates_per_epoch: int
    in_updates: bool = False
    warmup_steps: int = 0

    @staticmethod
    def of(config: RunConfig, batches: int) -> Plan:
        """Return the plan of a configuration for a number of batches of all training images."""
        updates = math.ceil(batches / config.accumulate)
        epochs = config.epochs
        if config.steps is not None and updates:
            epochs = math.ceil(config.steps / updates)
            updates = math.ceil(config.steps / epochs)
            batches = min(batches, updates * config.accumulate)
        in_updates = (config.steps, config.warmup_steps, config.decay_steps) != (None, None, None)
        warmup = config.warmup_epochs * updates if config.steps is None else 0
        if config.warmup_steps is not None:
            warmup = min(config.warmup_steps, epochs * updates // 5)
        return Plan(epochs, batches, updates, in_updates, round(warmup))

    def notes(self, config: RunConfig) -> list[str]:
        """Return a sentence where the warm-up is shorter than the configuration says."""
        if config.warmup_steps is None or self.warmup_steps == config.warmup_steps:
            return []
        total = self.epochs * self.updates_per_epoch
        return [
            f"warmup_steps={config.warmup_steps} is shortened to {self.warmup_steps}, a fifth of "
            f"the {total} updates of the training"
        ]


def _in_updates(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Return the lengths of the schedule in updates."""
    updates = plan.updates_per_epoch
    cooldown = 0 if config.steps is not None else config.cooldown_epochs * updates
    milestones = config.decay_steps or [m * updates for m in config.decay_milestones]
    return {
        "num_epochs": plan.epochs * updates - cooldown,
        "cooldown_epochs": cooldown,
        "decay_epochs": config.decay_epochs * updates,
        "decay_milestones": [m + 1 for m in milestones],  # timm's rate falls one update before
        "warmup_epochs": plan.warmup_steps,
    }


def check_optimizer(config: RunConfig) -> list[str]:
    """Check that the optimiser can train with the settings that the user gave.

    Args:
        config: names the optimiser; ``model_fields_set`` holds the settings that the user gave.

    Returns:
        Sentences to show: a setting of a recipe that is left out, and a compilation.

    Raises:
        ValueError: timm has no such optimiser (the nearest is named), it cannot train here, or it
            does not have a setting that the user gave.
    """
    name = config.opt.lower()
    known = [str(opt) for opt in list_optimizers(exclude_filters=["bnb*", "fused*"])]
    check_choice("optimiser", name, known)
    if get_optimizer_info(name).second_order:
        raise ValueError(
            f"opt={config.opt} needs second derivatives, which the training does not compute; "
            "write another optimiser, such as opt=adamw"
        )
    notes = []
    if config.opt_betas is not None and not _has_two_betas(name):
        given = f"opt_betas={list(config.opt_betas)}"
        if "opt_betas" in config.model_fields_set:
            raise ValueError(
                f"opt={config.opt} does not have two betas, which {given} sets; write "
                "opt_betas=null, or another optimiser, such as opt=adamw"
            )
        notes.append(f"{given} is left out: opt={config.opt} does not have two betas")
    if name.startswith("kron"):
        notes.append(f"opt={config.opt} compiles its update in the first batches: minutes")
    return notes


def build_optimizer(config: RunConfig, model: nn.Module, factor: float) -> torch.optim.Optimizer:
    """Return timm's optimiser, with a weight decay and a learning rate for each parameter.

    Args:
        config: the name of the optimiser and its settings.
        model: its parameters are updated; its methods ``no_weight_decay`` and ``group_matcher``
            name the parameters without weight decay and the layers for the layer decay.
        factor: the value of `rate_factor`.
    """
    further: dict[str, Any] = {}
    if config.opt_betas is not None and _has_two_betas(config.opt.lower()):
        further["betas"] = config.opt_betas
    return create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.lr * factor,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        layer_decay=config.layer_decay,
        **further,
    )


def _has_two_betas(name: str) -> bool:
    info = get_optimizer_info(name)
    return bool(info.has_betas) and info.num_betas == 2


def build_schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer, plan: Plan, factor: float
) -> Scheduler:
    """Return timm's schedule; ``step_update`` takes the number of updates so far.

    Args:
        config: the name of the schedule and its settings.
        optimizer: the schedule sets its learning rates.
        plan: number of epochs and of updates of the weights in each.
        factor: the value of `rate_factor`.
    """
    updates = plan.updates_per_epoch
    settings: dict[str, Any] = {
        "sched": config.sched,
        "num_epochs": config.epochs - config.cooldown_epochs,
        "cooldown_epochs": config.cooldown_epochs,
        "decay_epochs": config.decay_epochs,
        "decay_milestones": list(config.decay_milestones),
        "decay_rate": config.decay_rate,
        "warmup_epochs": config.warmup_epochs,
        "warmup_lr": config.warmup_lr * factor,
        "min_lr": config.min_lr * factor,
    }
    if plan.in_updates:
        settings |= _in_updates(config, plan)
        updates = 1
    schedule, _ = create_scheduler_v2(
        optimizer, **settings, step_on_epochs=False, updates_per_epoch=updates
    )
    return schedule
