"""Output of a training run: a line per epoch, and the progress of training and validation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.text import Text

from convattn.progress import Progress, duration
from convattn.runs.metrics import Column, score
from convattn.training.checkpoints import epoch_metrics
from convattn.training.module import TaskModule

_FORMATS = {"loss": ".4f", "share": ".2%", "rate": ".3g", "number": ",.0f"}


class EpochLines(ProgressBar):
    """Print a line per epoch; between the lines show the progress of training and validation.

    A terminal shows a bar. A pipe, a file or a notebook gets a line every ``every`` seconds, also
    while the first batch is loaded or the model is compiled. From the second epoch on, the time
    left includes the validations.

    Args:
        console: where to write.
        columns: the metrics of an epoch.
        rule: for the best epoch, see `score`.
        every: seconds between two lines where there is no terminal.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        console: Console,
        columns: tuple[Column, ...],
        rule: tuple[str, ...],
        *,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.console = console
        self.columns = columns
        self.rule = rule
        self._every, self._clock = every, clock
        self.progress: Progress | None = None
        self._training = False  # whether self.progress counts training images
        self._time = _TimeLeft(clock)
        self._best: tuple[float, ...] = ()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self.console.print(*args, **kwargs)

    def disable(self) -> None:
        """Print nothing: Lightning calls this in all processes but the first."""
        self._close()
        self.console = Console(quiet=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that the first batch is being loaded."""
        self._show("loading the first batch")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the heading."""
        self._close()
        titles = "".join(f"  {column.title:>{column.width}}" for column in self.columns)
        heading = f"{'epoch':>7}{titles}  {'images/s':>9}  {'left':>7}"
        self.console.print(Text(heading, style="bold"), soft_wrap=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the progress of the training images, unless the run resumes within the epoch."""
        self._start_training(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the progress of the training images in a run resumed within an epoch."""
        if not self._training:
            self._start_training(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the images of the batch."""
        if self.progress is not None:
            module = cast(TaskModule, pl_module)
            images = len(batch["index"]) * trainer.world_size
            self.progress.advance(images, lambda: self._means(module))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the progress of the validation images."""
        total = len(cast(TaskModule, pl_module).data.source.val)
        self._time.start_validation(total)
        self._show(f"validation {_epoch(trainer)}", total, left=self._time.left_of_validation)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images of the batch."""
        if self.progress is not None:
            self.progress.advance(len(batch["index"]) * trainer.world_size)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._time.end_validation()
        self._close()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line of the epoch."""
        self._close()
        found = epoch_metrics(trainer, self.columns)
        reached = score(found, self.rule)
        is_best = not self._best or reached > self._best
        self._best = max(self._best, reached)
        cells = "".join(f"  {_cell(c, found[c.name]):>{c.width}}" for c in self.columns)
        speed = float(trainer.callback_metrics["images_per_second"])
        line = Text(
            f"{_epoch(trainer):>7}{cells}  {speed:9,.0f}  {duration(self._time.left):>7}"
            + ("  best" if is_best else ""),
            style="green" if is_best else "",
        )
        self.console.print(line, soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the score of the best epoch."""
        return {"best": list(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score of the best epoch."""
        self._best = tuple(state_dict["best"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar, also after an error."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar before the error is printed."""
        self._close()

    def _start_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data, epoch = cast(TaskModule, pl_module).data, trainer.current_epoch
        per_batch = data.batch_size * trainer.world_size
        total = int(trainer.num_training_batches) * per_batch
        done = data.batches_done * per_batch if epoch == data.epoch else 0
        self._time.start_training(total, done, (trainer.max_epochs or 0) - epoch - 1)
        self._show(f"epoch {_epoch(trainer)}", total, done, self._time.left_of_training)
        self._training = True

    def _means(self, module: TaskModule) -> str:
        means = module.train_means()
        shown = [c for c in self.columns if c.name in means]
        return ", ".join(f"{c.title} {_cell(c, means[c.name])}" for c in shown)

    def _show(
        self,
        title: str,
        total: int | None = None,
        done: int = 0,
        left: Callable[[int, float], float] | None = None,
    ) -> None:
        """Replace the progress that is shown."""
        self._close()
        self.progress = Progress(
            title,
            total,
            every=self._every,
            clock=self._clock,
            console=self.console,
            done=done,
            left=left,
        )

    def _close(self) -> None:
        self._training = False
        if self.progress is not None:
            self.progress.close()
            self.progress = None


class _TimeLeft:
    """Estimates the time left of the whole training.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._total = self._validated = 0  # images of an epoch
        self._start = 0.0
        self._done = self._epochs = 0
        self._train_seconds = self._val_seconds = 0.0  # of an epoch, 0 until measured

    def start_training(self, total: int, done: int, epochs: int) -> None:
        """Start to measure the training images of an epoch.

        Args:
            total: images of an epoch.
            done: images that were trained before the run was resumed.
            epochs: epochs after this one.
        """
        self._total, self._done, self._epochs = total, done, epochs
        self._start = self._clock()

    def start_validation(self, total: int) -> None:
        """Measure the time of the training images; start to measure ``total`` validation images."""
        trained = max(1, self._total - self._done)
        self._train_seconds = (self._clock() - self._start) * self._total / trained
        self._start, self._validated = self._clock(), total

    def end_validation(self) -> None:
        """Measure the time of the validation images."""
        self._val_seconds = self._clock() - self._start

    def left_of_training(self, done: int, rate: float) -> float:
        """Return the seconds left while training images are processed."""
        images = max(0, self._total - done) + self._epochs * self._total
        return images / rate + (self._epochs + 1) * self._val_seconds

    def left_of_validation(self, done: int, rate: float) -> float:
        """Return the seconds left while validation images are processed."""
        images = max(0, self._validated - done) + self._epochs * self._validated
        return images / rate + self._epochs * self._train_seconds

    @property
    def left(self) -> float:
        """The seconds left at the end of an epoch."""
        return self._epochs * (self._train_seconds + self._val_seconds)


def _epoch(trainer: pl.Trainer) -> str:
    return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"


def _cell(column: Column, value: float) -> str:
    return format(value, _FORMATS[column.kind])
