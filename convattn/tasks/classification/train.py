"""One training run, from a configuration to a folder with the best weights and their evaluation."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.text import Text

from convattn.data import DataSource, shown
from convattn.runs.card import ModelCard
from convattn.runs.folder import RunFolder
from convattn.runs.weights import find_checkpoint, read_ckpt
from convattn.tasks.classification.build import build_model, build_source, data_options
from convattn.tasks.classification.callbacks import (
    KeepCheckpoints,
    StopOnSignal,
    TrainingInterruptedError,
    WriteMetrics,
)
from convattn.tasks.classification.columns import METRICS
from convattn.tasks.classification.config import TrainConfig
from convattn.tasks.classification.datamodule import ClassificationData
from convattn.tasks.classification.evaluate import Evaluation, evaluate
from convattn.tasks.classification.module import Classifier
from convattn.tasks.classification.optimizer import check_optimizer, rate_factor
from convattn.tasks.classification.progress import EpochLines
from convattn.tasks.classification.settings import make_config
from convattn.tasks.classification.shapes import shape_notes
from convattn.tasks.classification.trained_data import open_again, range_notes

# What a run that goes on cannot change: its weights, its batches and its optimiser depend on it.
# Its range of values can be set where an earlier version kept none.
_FIXED = (
    "model", "model_args", "data", "root", "train_split", "val_split", "val_fraction",
    "split_seed", "in_chans", "img_size", "batch_size", "accumulate", "repeats", "opt", "momentum",
    "opt_betas", "weight_decay", "layer_decay", "ema", "seed", "runs", "name",
    "value_range",
)  # fmt: skip

_NOISE = (
    ".*LeafSpec.*is deprecated.*",
    ".*does not have many workers.*",
    ".*modules in eval mode.*",
    ".*in eval mode at the start of training.*",
    ".*smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # ours is: see EpochSampler
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
)


@dataclass(frozen=True)
class TrainResult:
    """What a run reached.

    Args:
        run_dir: where it was written.
        source: the data.
        evaluation: of the best epoch's weights; None if the run was interrupted, or in another
            process of a distributed training than the first.
        best_epoch: which one that was, from 1.
        epochs_done: epochs that are finished.
        batches_done: batches of the next one, where the run was interrupted.
        seconds: how long it took.
        stopped: whether it was interrupted.
    """

    run_dir: Path
    source: DataSource
    evaluation: Evaluation | None
    best_epoch: int
    epochs_done: int
    batches_done: int
    seconds: float
    stopped: bool


@dataclass(frozen=True)
class _Start:
    """Where a run begins or goes on."""

    checkpoint: Path | None = None
    epochs_done: int = 0
    batches_done: int = 0
    card: ModelCard | None = None


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainResult:
    """Train a classifier and evaluate its best epoch.

    Args:
        config: from `load_config`.
        callbacks: further callbacks for Lightning.
        console: where the progress is shown; ``Console(quiet=True)`` for nowhere.

    Returns:
        A `TrainResult`.

    Raises:
        ValueError: the configuration does not fit the data or the model.
        FileExistsError: the run's name is taken.
        TrainingDivergedError: the loss is no longer a number.
    """
    return _Training(config, None, _Start(), console).run(callbacks)


def resume(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainResult:
    """Go on with a run where it stopped, to the same result as if it had not.

    Args:
        path: the run's folder, or one of its .ckpt files.
        overrides: settings to change, such as more epochs.
        callbacks: further callbacks for Lightning.
        console: where the progress is shown.

    Returns:
        A `TrainResult`.

    Raises:
        FileNotFoundError: there is no run or no checkpoint.
        ValueError: a setting cannot change in the middle of a run, or the data has other classes.
    """
    checkpoint = find_checkpoint(path, "last.ckpt")
    folder = RunFolder(checkpoint.parent.parent)
    if checkpoint.suffix != ".ckpt" or not (folder.path / "config.yaml").is_file():
        raise ValueError(
            f"cannot go on from {checkpoint}: give a run folder, or a .ckpt file in one"
        )
    progress = read_ckpt(checkpoint)["convattn"]
    card = ModelCard.from_json(progress["card"], str(checkpoint))
    config = _changed(make_config(folder.read_config()), card, overrides or {})
    start = _Start(checkpoint, progress["epochs_done"], progress["batches_done"], card)
    _check_unfinished(folder, config, start)
    return _Training(config, folder, start, console).run(callbacks)


def _changed(config: TrainConfig, card: ModelCard, overrides: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run that goes on, of which only some can change."""
    values = config.model_dump()
    free = {"value_range"} if card.value_range is None else set()
    if not free:
        values["value_range"] = card.value_range
    for key in overrides:
        if key in _FIXED and key not in free:
            raise ValueError(
                f"{key} cannot change in a run that goes on (it is {values[key]!r}); "
                "start a new run, with init=RUN_DIR to start from these weights"
            )
    return make_config({**values, **overrides})


def _check_unfinished(folder: RunFolder, config: TrainConfig, start: _Start) -> None:
    """Raise if nothing is left to do: before anything of the run is written."""
    done = start.epochs_done
    evaluated = folder.is_evaluated
    if config.epochs < done or (config.epochs == done and evaluated and not start.batches_done):
        raise ValueError(
            f"{folder.path} has finished {done} epochs, and epochs={config.epochs} asks for no "
            f"more; epochs={done + 10} goes on with it"
        )


class _Training:
    """The parts of a run, put together."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder | None, start: _Start, console: Console | None
    ) -> None:
        check_optimizer(config.opt)
        self.is_first = getattr(rank_zero_only, "rank", 0) == 0  # of several processes
        self.console = (console or Console()) if self.is_first else Console(quiet=True)
        self.config = config
        self.start = start
        pl.seed_everything(config.seed, workers=True, verbose=False)
        self.source = self._open(folder)
        if start.checkpoint is not None:  # its weights replace those that the run began with
            config = config.model_copy(update={"init": None, "pretrained": False})
        model, self.card, self.init = build_model(config, self.source)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.data = ClassificationData(
            self.source,
            config,
            self.card.preprocess,
            epoch=start.epochs_done,
            batches_done=start.batches_done,
        )
        self.module = Classifier(model, config, self.data)
        with _quiet_lightning():
            self.trainer = _make_trainer(config)
        self.folder = folder or self._new_folder()
        self.keep = KeepCheckpoints(self.folder, self.card, start.epochs_done)
        self.stop = StopOnSignal(self.keep, functools.partial(self.console.print, soft_wrap=True))

    def _open(self, folder: RunFolder | None) -> DataSource:
        """Open the data; that of a run that goes on, with the classes that its weights know."""
        card, config = self.start.card, self.config
        if card is None or folder is None:
            return build_source(config)
        return open_again(card, folder.path, config.data, **data_options(config))

    def run(self, callbacks: Sequence[Callback]) -> TrainResult:
        """Train, evaluate, and write both down."""
        begin = time.perf_counter()
        if self.is_first:
            self.folder.write_config(self.config.model_dump(mode="json"))
            self.folder.remove_temporary()
            notes = self.folder.write_environment()
            notes += self.folder.keep_metrics(METRICS, self.start.epochs_done)
            for note in notes:
                self.console.print(shown(note), markup=False, soft_wrap=True)
        self._introduce()
        finished = self._fit(callbacks)
        seconds = time.perf_counter() - begin
        evaluation = None
        if self.is_first:
            broken = [*self.source.broken, *self.data.broken_files()]
            self.folder.write_broken(broken)
            if finished:
                evaluation = evaluate(
                    find_checkpoint(self.folder.path),
                    self.source,
                    split="val",
                    max_broken=self.config.max_broken,
                )
                evaluation.write(self.folder.path)
        return TrainResult(
            run_dir=self.folder.path,
            source=self.source,
            evaluation=evaluation,
            best_epoch=self.keep.best_epoch,
            epochs_done=self.keep.epochs_done,
            batches_done=self.keep.batches_done,
            seconds=seconds,
            stopped=not finished,
        )

    def _fit(self, callbacks: Sequence[Callback]) -> bool:
        """Whether the training came to its end."""
        lines = EpochLines(self.console)
        with _quiet_lightning(), _threads(self.config.threads):
            # Attached only here, since they need the folder, and a folder is made only for a
            # machine that can do what is asked.
            ours: list[Callback] = [lines, WriteMetrics(self.folder), self.stop]
            cast(Any, self.trainer).callbacks += [*ours, *callbacks, self.keep]
            if self.config.tensorboard:
                self.trainer.logger = TensorBoardLogger(
                    self.folder.path, name="", version="tensorboard"
                )
            if self.config.compile:
                self.module.model.compile()
            self.stop.listen()
            try:
                self.trainer.fit(
                    self.module, self.data, ckpt_path=self.start.checkpoint, weights_only=True
                )
            except TrainingInterruptedError:
                return False
            except SystemExit:  # how Lightning ends on a second Ctrl-C
                raise KeyboardInterrupt from None
            finally:
                self.stop.release()
        return True

    def _new_folder(self) -> RunFolder:
        """Only the first process writes, so that only it needs a folder of its own."""
        config = self.config
        if not self.is_first:
            return RunFolder(config.runs)
        return RunFolder.create(config.runs, config.name, config.model, config.data)

    def _introduce(self) -> None:
        config, source, size = self.config, self.source, self.card.preprocess.input_size
        parameters = sum(p.numel() for p in self.module.model.parameters())
        factor = rate_factor(config, self.data.images_per_update)
        scaled = "" if factor == 1 else f" ({config.lr:g} x {factor:.3g} for this batch)"
        lines = [
            f"run       {self.folder.path}",
            f"model     {config.model}, {parameters:,} parameters, input "
            + "x".join(map(str, size)),
            f"data      {source.name}, {source.num_classes} classes, {len(source.train):,} images "
            f"to learn from, {len(source.val):,} held out",
            f"training  {config.epochs} epochs of {self.data.batches_per_epoch} batches of "
            f"{self.data.batch_size}, {config.opt}, learning rate {config.lr * factor:.3g}{scaled}",
        ]
        if self.init is not None:
            lines.append(f"start     {self.init}")
        if source.broken:
            lines.append(f"skipped   {len(source.broken)} images that cannot be read")
        notes = [*source.notes, *shape_notes(self.card.preprocess, source.typical_size)]
        if self.start.card is not None:
            notes += range_notes(self.start.card, source.value_range)
        lines += [f"note      {note}" for note in notes]
        if self.start.checkpoint is not None:
            lines.append(f"going on  after {self.start.epochs_done} epochs" + _and(self.start))
        # As it is: a name such as "[red]" is no markup.
        self.console.print(Text("\n".join(map(shown, lines))), soft_wrap=True)


def _and(start: _Start) -> str:
    return f" and {start.batches_done} batches" if start.batches_done else ""


def _precision(config: TrainConfig) -> Any:
    if config.precision != "auto":
        return {"32": "32-true", "64": "64-true"}.get(config.precision, config.precision)
    on_gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _make_trainer(config: TrainConfig) -> pl.Trainer:
    """Lightning's trainer, bare: what it writes and shows is attached when the run begins."""
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            precision=_precision(config),
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_grad,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,  # ours are distributed already
        )
    except (MisconfigurationException, ImportError) as error:
        raise ValueError(
            f"accelerator={config.accelerator}, devices={config.devices}, strategy="
            f"{config.strategy} is not possible here: {error}; `convattn doctor` shows the devices"
        ) from error


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning from advertising and from warning about what is meant to be so."""
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
