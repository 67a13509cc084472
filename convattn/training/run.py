"""A training run of any task, which writes a folder with weights and evaluation."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.text import Text
from torch.multiprocessing.spawn import ProcessRaisedException

from convattn.data import DataSource, open_dataset, shown
from convattn.progress import Progress, open_console
from convattn.runs.card import ModelCard
from convattn.runs.data_record import DataRecord
from convattn.runs.environment import cpu_kernels
from convattn.runs.folder import RunFolder
from convattn.runs.weights import read_ckpt
from convattn.training.backbone import check_batch
from convattn.training.checkpoints import KeepCheckpoints, WriteMetrics
from convattn.training.config import RunConfig, data_options
from convattn.training.console import EpochLines
from convattn.training.data import TaskData
from convattn.training.evaluate import evaluate
from convattn.training.evaluation import TaskEvaluation
from convattn.training.module import TaskModule
from convattn.training.optimizer import check_optimizer, rate_factor
from convattn.training.precision import precision_notes, resolve_precision
from convattn.training.report import write_run_report
from convattn.training.signals import StopOnSignal, StopRequest, TrainingInterruptedError
from convattn.training.slurm import requeue, was_requeued
from convattn.training.start import (
    Start,
    changed_settings,
    find_run,
    has_finished,
    is_run_of,
)
from convattn.training.task import Task, all_columns
from convattn.training.tensorboard import TensorBoard
from convattn.training.trained import check_task, load_trained, named_model
from convattn.training.trained_data import held_out_part, open_again, range_notes
from convattn.training.trainer import (
    make_trainer,
    model_threads,
    own_random_numbers,
    quiet_lightning,
    sync_left_out,
)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Args:
        run_dir: the folder of the run.
        source: the `DataSource`; None if the run had already finished.
        evaluation: the task's `TaskEvaluation` of the best epoch's weights; None if the run was
            stopped or had already finished, and in all processes but the first.
        best_epoch: number of the best epoch, from 1.
        epochs_done: number of finished epochs.
        batches_done: number of trained batches of the next epoch, if the run was stopped.
        seconds: duration of the training.
        stopped: whether a signal stopped the run.
        had_finished: whether the run had finished before, and nothing was trained.
        report: path of the report page; None if it was not written.
        signal: the number of the signal that stopped the run.
        is_first: whether this is the first of several processes that train together.
    """

    run_dir: Path
    source: Any
    evaluation: Any
    best_epoch: int
    epochs_done: int
    batches_done: int
    seconds: float
    stopped: bool
    had_finished: bool = False
    report: Path | None = None
    signal: int | None = None
    is_first: bool = True


def train(
    task: type[Task[Any]],
    config: RunConfig,
    *,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainResult:
    """Train a model; arguments and errors as in `convattn.tasks.table.train`."""
    if config.name is not None and was_requeued():
        folder = Path(config.runs).expanduser() / config.name
        if is_run_of(folder, config):
            note = f"SLURM has started this job again: {folder} is continued"
            return _resume(task, folder, {}, callbacks, console, note)
    with own_random_numbers():
        return _Training(task, config, None, Start(), console).run(callbacks)


def resume(
    task: type[Task[Any]],
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainResult:
    """Continue a run; arguments and errors as in `convattn.tasks.table.resume`."""
    return _resume(task, Path(path).expanduser(), dict(overrides or {}), callbacks, console, "")


def _resume(
    task: type[Task[Any]],
    path: Path,
    overrides: Mapping[str, Any],
    callbacks: Sequence[Callback],
    console: Console | None,
    note: str,
) -> TrainResult:
    folder, checkpoint = find_run(path)
    config = folder.read_config()
    if checkpoint is None:
        note = f"{folder.path} has no checkpoint yet: the training starts again"
        start = Start(note=note)
    else:
        saved = read_ckpt(checkpoint)
        progress = saved["convattn"]
        card = ModelCard.from_json(progress["card"], str(checkpoint))
        check_task(task, card, checkpoint)
        if path.is_dir() and checkpoint != folder.last:
            note = f"{folder.path} has no last.ckpt: the run continues from {checkpoint.name}"
        start = Start(
            checkpoint,
            int(saved.get("global_step", 0)),
            progress["epochs_done"],
            progress["batches_done"],
            card,
            note,
        )
    changed = changed_settings(task, config, start.card, folder.read_data(), overrides)
    if has_finished(folder, changed, start):
        assert checkpoint is not None
        return _finished(task, folder, checkpoint, start)
    with own_random_numbers():
        return _Training(task, changed, folder, start, console).run(callbacks)


def _finished(
    task: type[Task[Any]], folder: RunFolder, checkpoint: Path, start: Start
) -> TrainResult:
    best = read_ckpt(checkpoint)["convattn"].get("best_epoch", 0)
    report = folder.path / "report.html"
    if not _is_newer(report, folder.path / "evaluation.json"):
        report = write_run_report(task, folder.path)
    return TrainResult(
        run_dir=folder.path, source=None, evaluation=None, best_epoch=best,
        epochs_done=start.epochs_done, batches_done=0, seconds=0.0, stopped=False,
        had_finished=True, report=report,
    )  # fmt: skip


def _is_newer(path: Path, other: Path) -> bool:
    """Return whether a file exists and was written after another file."""
    return path.is_file() and path.stat().st_mtime >= other.stat().st_mtime


class _Training:
    """A training run with its data, model, trainer and folder."""

    def __init__(
        self,
        task: type[Task[Any]],
        config: RunConfig,
        folder: RunFolder | None,
        start: Start,
        console: Console | None,
    ) -> None:
        notes = [*check_optimizer(config), *precision_notes(config)]
        self.is_first = getattr(rank_zero_only, "rank", 0) == 0  # of several processes
        self.console = (console or open_console()) if self.is_first else Console(quiet=True)
        self.config = config
        self.start = start
        pl.seed_everything(config.seed, workers=True, verbose=False)
        self.record = folder.read_data() if folder else None
        self.source = self._open(folder)
        if start.checkpoint is not None:  # it has the weights
            config = config.model_copy(update={"init": None, "pretrained": False})
        self.task = task(config, self.source)
        self.built = self.task.build()
        self.card = self.built.card
        model = self.built.model
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.data = TaskData(
            self.task,
            self.card.preprocess,
            epoch=start.epochs_done,
            batches_done=start.batches_done,
        )
        check_batch(
            model, self.data.batch_size, self.card.preprocess.input_size, self.task.train_forward
        )
        self.module = TaskModule(self.task, model, self.card, self.data)
        self._check_rest_of_epoch()
        self.notes: list[str] = notes
        if start.checkpoint is not None and folder is not None and not folder.has_best:
            self.notes.append(
                f"{shown(folder.best)} is missing: the best epoch is chosen from the following ones"
            )
        self.is_new = folder is None
        with quiet_lightning():  # raises before the folder is created
            trial = make_trainer(config, Path(config.runs))
        if left_out := sync_left_out(config, trial):
            self.notes.append(left_out)
            config = config.model_copy(update={"batch_norm": "train"})
        self.folder = folder or self._new_folder()
        with self._discarding(), quiet_lightning():
            self.trainer = make_trainer(config, self.folder.path)
        self.data.trainer = self.trainer  # it has the number of processes
        self.plan = self.data.plan
        self.notes += self.plan.notes(config)
        if config.steps is not None:
            self.trainer.fit_loop.max_epochs = self.plan.epochs
            self.trainer.limit_train_batches = self.plan.batches_per_epoch
        if self._device.type == "cpu":
            self.card = replace(self.card, kernels=cpu_kernels() or "")
        if start.card is not None:
            self.card = replace(self.card, epoch=start.card.epoch, metrics=start.card.metrics)
        self.keep = KeepCheckpoints(
            self.folder,
            self.card,
            all_columns(self.task),
            task.best,
            epochs_done=start.epochs_done,
            minutes=config.checkpoint_minutes,
        )
        self.request = StopRequest(functools.partial(self.console.print, soft_wrap=True))

    def _open(self, folder: RunFolder | None) -> DataSource:
        """Open the data; for a resumed run with the same images and classes as before."""
        options = data_options(self.config)
        if folder is None:
            return open_dataset(self.config.data, **options)
        return open_again(self.config.data, folder, self.start.card, self.record, **options)

    def _check_rest_of_epoch(self) -> None:
        """Raise `ValueError` if images are missing, so that the epoch has no batches left."""
        done, batches = self.start.batches_done, self.data.plan.batches_per_epoch
        if done >= batches > 0 and self.start.checkpoint is not None:
            best = self.start.checkpoint.with_name("best.ckpt")
            raise ValueError(
                f"the run was stopped after {done} batches of an epoch, but images are missing, "
                f"and an epoch now has {batches} of them: restore the images, or continue from the "
                f"end of an epoch: {best}"
            )

    def run(self, callbacks: Sequence[Callback]) -> TrainResult:
        """Train and evaluate the model, and write the files of the run."""
        with model_threads(self.config.threads):
            return self._run(callbacks)

    def _run(self, callbacks: Sequence[Callback]) -> TrainResult:
        begin = time.perf_counter()
        evaluation, report = None, None
        with self.request:
            with self._discarding():
                if self.is_first:
                    self._write_beginning()
                self._print_start()
                finished = self._fit(callbacks) and not self.request.is_received
            seconds = time.perf_counter() - begin
            progress = self._progress()
            if self.is_first:
                self._optional("broken_images.txt", self._write_broken)
                with self.request.interrupting():
                    if finished:
                        evaluation = self._evaluate()
                    write = functools.partial(self._report, finished, seconds)
                    report = self._optional("report.html", write)
                if self.request.is_received and self.request.number == getattr(
                    signal, "SIGUSR1", None
                ):
                    self._say(f"SLURM     {requeue()}")
        return TrainResult(
            run_dir=self.folder.path,
            source=self.source,
            evaluation=evaluation,
            best_epoch=progress["best_epoch"],
            epochs_done=progress["epochs_done"],
            batches_done=progress["batches_done"],
            seconds=seconds,
            stopped=not finished or self.request.is_received,
            report=report,
            signal=self.request.number,
            is_first=self.is_first,
        )

    def _write_beginning(self) -> None:
        names = tuple(column.name for column in all_columns(self.task))
        self.folder.checkpoints.mkdir(exist_ok=True)
        self.folder.remove_temporary()
        self.folder.write_config(self.config.model_dump(mode="json"))
        self.notes += self.folder.keep_metrics(names, self.start.epochs_done)
        if self.record is None:
            self.folder.write_data(DataRecord.of(self.source))
        elif self.record.name != self.source.name:  # the folder of the data was moved
            self.folder.write_data(replace(self.record, name=self.source.name))
        self.notes += self._optional("environment.json", self.folder.write_environment) or []

    def _write_broken(self) -> None:
        self.folder.write_broken([*self.source.broken, *self.data.broken_files()])

    def _progress(self) -> dict[str, Any]:
        """Return the progress in the last checkpoint, which another process may have written."""
        if not self.folder.last.is_file():
            return {"best_epoch": 0, "epochs_done": 0, "batches_done": 0}
        return {"best_epoch": 0, **read_ckpt(self.folder.last)["convattn"]}

    def _evaluate(self) -> TaskEvaluation:
        evaluation = evaluate(
            type(self.task),
            load_trained(type(self.task), self.folder.path),
            self.source,
            split="val",
            max_broken=self.config.max_broken,
            device=self._device,
            console=self.console,
        )
        evaluation.write(self.folder.path)
        return evaluation

    def _report(self, finished: bool, seconds: float) -> Path:
        whole = finished and self.start.checkpoint is None
        with Progress("writing report.html", console=self.console):
            return write_run_report(
                type(self.task),
                self.folder.path,
                source=self.source,
                seconds=seconds if whole else None,
            )

    def _optional(self, what: str, write: Callable[[], Any]) -> Any:
        """Write a file that only describes the run; an error is printed as a note."""
        try:
            return write()
        except Exception as error:
            self._note(f"{what} cannot be written: {error}")
            return None

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        """Remove the folder of a new run that fails before its first step."""
        try:
            yield
        except BaseException:
            started = getattr(self, "trainer", None) is not None and self.trainer.global_step > 0
            if self.is_new and self.is_first and not started and not self.folder.last.exists():
                self.folder.discard()
            raise

    def _fit(self, callbacks: Sequence[Callback]) -> bool:
        """Train; return whether all epochs were trained."""
        columns = all_columns(self.task)
        own = self.task.columns(self.task.method)
        lines = EpochLines(self.console, own, self.task.best)
        with quiet_lightning():
            # The trainer is made before the folder, so that impossible devices are an error before
            # a folder is made; these callbacks write into the folder.
            write = WriteMetrics(self.folder, columns, self._note)
            stop = StopOnSignal(self.request, self.keep)
            # Those that save come after the user's, whose states then include the batch at hand.
            cast(Any, self.trainer).callbacks += [lines, write, *callbacks, stop, self.keep]
            if self.config.tensorboard:
                self.trainer.logger = TensorBoard(self.folder.path, self._note)
            if self.config.compile:
                self.module.model.compile()
            try:
                self.trainer.fit(
                    self.module, self.data, ckpt_path=self.start.checkpoint, weights_only=True
                )
            except TrainingInterruptedError:
                return False
            except ProcessRaisedException as error:  # of a process that the strategy started
                if TrainingInterruptedError.__name__ not in str(error):
                    raise
                return False
            except SystemExit:  # Lightning raises it in place of KeyboardInterrupt
                raise KeyboardInterrupt from None
            except Exception as error:
                if not stop.counts(error):
                    raise
                self._say(
                    "note      the signal ended the loading processes too: batches "
                    "after the last saved one are lost"
                )
                return False
        return True

    def _new_folder(self) -> RunFolder:
        """Create the run folder in the first process; the other processes write no files."""
        config = self.config
        if not self.is_first:
            return RunFolder(Path(config.runs) / ".other-processes")
        return RunFolder.create(config.runs, config.name, config.model, config.data)

    def _print_start(self) -> None:
        config, source, size = self.config, self.source, self.card.preprocess.input_size
        parameters = sum(p.numel() for p in self.module.model.parameters())
        factor = rate_factor(config, self.data.images_per_update)
        scaled = "" if factor == 1 else f" ({config.lr:g} x {factor:.3g} for this batch size)"
        classes = f"{len(self.card.class_names)} classes, " if self.card.class_names else ""
        updates = self.plan.epochs * self.plan.updates_per_epoch
        total = "" if config.steps is None else f"{updates:,} updates in "
        lines = [
            f"run       {self.folder.path}",
            f"model     {named_model(self.card)}, {parameters:,} parameters, input "
            + "x".join(map(str, size)),
            f"data      {source.name}, {classes}{len(source.train):,} images for training, "
            f"{len(source.val):,} held out ({held_out_part(source, config)})",
            f"training  {total}{self.plan.epochs} epochs of {self.plan.batches_per_epoch:,} "
            f"batches of "
            f"{self.data.batch_size} images, {config.opt}, learning rate "
            f"{config.lr * factor:.3g}{scaled}",
            f"machine   {self._machine()}",
        ]
        lines += [f"start     {line}" for line in self._start_weights()]
        if config.compile:
            lines.append(
                "compile   torch.compile compiles the model in the first batches: this takes "
                "minutes"
            )
        if source.broken:
            lines.append(f"skipped   {len(source.broken)} images that cannot be read")
        notes = [*self.built.notes, *source.notes, *self.notes]
        if self.start.card is not None:
            notes += range_notes(self.start.card, source.value_range)
        lines += [f"note      {note}" for note in notes]
        if self.start.note:
            lines.append(f"resuming  {self.start.note}")
        if self.start.checkpoint is not None:
            lines.append(
                f"resuming  after {self.start.epochs_done} epochs" + _and_batches(self.start)
            )
        # Printed as plain text, since names such as "[red]" are no markup.
        self._say("\n".join(map(shown, lines)))

    @property
    def _device(self) -> torch.device:
        """The device of the training and of the evaluation after it."""
        return self.trainer.strategy.root_device

    def _start_weights(self) -> list[str]:
        """Return sentences on the initial weights and on settings that were left out."""
        config = self.config
        if self.start.checkpoint is not None or config.init or config.pretrained:
            return list(self.built.start)
        return [f"random weights, seed {config.seed}", *self.built.start]

    def _machine(self) -> str:
        """Return the device, precision, threads and loading processes, as settings."""
        config, device = self.config, self._device
        precision = resolve_precision(config)
        if precision in ("32-true", "64-true"):  # "bf16-true" is a setting
            precision = precision.removesuffix("-true")
        found = {"accelerator": device.type, "precision": precision}
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            found["accelerator"] = f"cuda, {self.trainer.world_size} x {name}"
        elif device.type == "cpu":
            found["threads"] = str(config.threads or torch.get_num_threads())
        found["workers"] = str(self.data.workers)
        auto = {name for name in found if getattr(config, name) in ("auto", None)}
        return ", ".join(
            f"{name}={text}" + (" (auto)" if name in auto else "") for name, text in found.items()
        )

    def _note(self, text: str) -> None:
        self._say(f"note      {shown(text)}")

    def _say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def _and_batches(start: Start) -> str:
    return f" and {start.batches_done} batches" if start.batches_done else ""
