"""Lightning's trainer, and what a training changes in the process while it runs."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from convattn.training.batch_norm import SyncNorms
from convattn.training.checkpoints import WholeFiles
from convattn.training.config import RunConfig
from convattn.training.devices import device_error
from convattn.training.precision import HalfImages, resolve_precision

_NOISE = (
    ".*LeafSpec.*is deprecated.*",
    ".*does not have many workers.*",
    ".*modules in eval mode.*",
    ".*in eval mode at the start of training.*",
    ".*smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # it is: see EpochSampler
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    ".*sync_dist=True.*",  # torchmetrics reduces over processes
)


def make_trainer(config: RunConfig, folder: Path) -> pl.Trainer:
    """Return Lightning's trainer without callbacks and logger, which `_fit` adds.

    Args:
        config: has the settings of the devices.
        folder: where Lightning looks for files of its own, such as those of a SLURM job.
    """
    if config.strategy.endswith("_spawn"):
        raise ValueError(
            f"strategy={config.strategy} is not possible: a training cannot be copied into spawned "
            f"processes; write strategy={config.strategy.removesuffix('_spawn')}, "
            f"or in a notebook strategy={config.strategy.removesuffix('_spawn')}_notebook"
        )
    precision = resolve_precision(config)
    # Other strategies have classes of their own for the precision.
    is_plain = config.strategy.partition("_")[0] in ("auto", "ddp")
    half_images = [HalfImages()] if precision == "bf16-true" and is_plain else []
    sync = [SyncNorms()] if config.batch_norm == "sync" else []
    try:
        return pl.Trainer(
            accelerator=config.accelerator.lower(),
            devices=config.devices,
            strategy=config.strategy,
            precision=None if half_images else precision,
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_grad,
            default_root_dir=folder,
            plugins=[WholeFiles(), *_cluster(), *half_images, *sync],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,  # our sampler is distributed already
        )
    except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
        raise ValueError(device_error(config, error)) from error


def sync_left_out(config: RunConfig, trainer: pl.Trainer) -> str:
    """Return a note if batch norms cannot be synchronised, as a recipe asks for, else "".

    Raises:
        ValueError: the user asked for it.
    """
    device = trainer.strategy.root_device.type
    if config.batch_norm != "sync" or trainer.world_size == 1 or device == "cuda":
        return ""
    reason = f"PyTorch synchronises batch norms on GPUs only, not on {device}"
    if "batch_norm" in config.model_fields_set:
        raise ValueError(f"batch_norm=sync: {reason}; set batch_norm=train")
    return f"batch_norm=sync is left out: {reason}"


def _cluster() -> list[Any]:
    """Return SLURM's environment without Lightning's own checkpoints and requeueing."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


@contextlib.contextmanager
def model_threads(number: int | None) -> Iterator[None]:
    """Let PyTorch use this number of threads; None keeps the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Restore the caller's generators: a search draws new settings after each training."""
    state = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's advertisements, and its warnings on intended behaviour."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            log.setLevel(level)
