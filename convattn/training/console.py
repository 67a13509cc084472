"""What a training shows: a bar in a terminal, a line per epoch, elsewhere a line now and then."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from convattn.runs.metrics import Column, score
from convattn.training.checkpoints import epoch_metrics
from convattn.training.module import TaskModule

_FORMATS = {"loss": ".4f", "share": ".2%", "rate": ".3g", "number": ",.0f"}
_EVERY = 30.0  # seconds between two lines where there is no terminal


class EpochLines(ProgressBar):
    """Print a line per epoch, and in a terminal a bar below for the epoch that is running.

    Elsewhere (pipe, file, notebook) a line every 30 seconds shows the progress of the epoch.

    Args:
        console: where to write; the bar appears if it is a terminal.
        columns: the metrics of an epoch.
        rule: for the best epoch, see `score`.
    """

    def __init__(
        self, console: Console, columns: tuple[Column, ...], rule: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.console = console
        self.columns = columns
        self.rule = rule
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._clock = _Clock()
        self._best: tuple[float, ...] = ()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self.console.print(*args, **kwargs)

    def disable(self) -> None:
        """Print nothing: Lightning asks this of all processes but the first."""
        self.console = Console(quiet=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the heading, start the clock and the bar."""
        batches = int(trainer.num_training_batches)
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        self._clock = _Clock(done, batches * (trainer.max_epochs or 0))
        titles = "".join(f"  {column.title:>{column.width}}" for column in self.columns)
        heading = f"{'epoch':>7}{titles}  {'images/s':>9}  {'left':>7}"
        self.console.print(Text(heading, style="bold"), soft_wrap=True)
        if self.console.is_terminal and not self.console.is_jupyter and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
                transient=True,
                refresh_per_second=5,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=batches, numbers="")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the bar, or print a line where there is none."""
        self._clock.tick(len(batch["index"]) * trainer.world_size)
        if not trainer.is_global_zero or not self._clock.due(0.2 if self._bar else _EVERY):
            return
        assert isinstance(pl_module, TaskModule)
        means = pl_module.train_means()
        shown = [f"{c.title} {_cell(c, means[c.name])}" for c in self.columns if c.name in means]
        speed = f"{self._clock.speed:,.0f} images/s"
        numbers = "   ".join([*shown, speed, f"{_duration(self._clock.left)} left"])
        self._show(
            trainer,
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            batch_idx + 1,
            int(trainer.num_training_batches),
            numbers,
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the bar say that the validation has begun."""
        if self._bar is not None:
            total = trainer.num_training_batches
            self._bar.update(self._task, completed=total, numbers="validating ...")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line where there is none."""
        if not trainer.is_global_zero or not self._clock.due(0.2 if self._bar else _EVERY):
            return
        total = trainer.num_val_batches
        batches = int(total[0] if isinstance(total, list) else total)
        epoch = f"validation {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._show(trainer, epoch, batch_idx + 1, batches, "")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line of the epoch."""
        found = epoch_metrics(trainer, self.columns)
        reached = score(found, self.rule)
        is_best = not self._best or reached > self._best
        self._best = max(self._best, reached)
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        cells = "".join(f"  {_cell(c, found[c.name]):>{c.width}}" for c in self.columns)
        speed = float(trainer.callback_metrics["images_per_second"])
        line = Text(
            f"{epoch:>7}{cells}  {speed:9,.0f}  {_duration(self._clock.left):>7}"
            + ("  best" if is_best else ""),
            style="green" if is_best else "",
        )
        self.console.print(line, soft_wrap=True)  # its own style: the bar below keeps its own
        self._clock.start_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the score of the best epoch."""
        return {"best": list(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score of the best epoch."""
        self._best = tuple(state_dict["best"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar, also after an error."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar before the error is printed."""
        self._stop()

    def _show(self, trainer: pl.Trainer, what: str, done: int, total: int, numbers: str) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, total=total, description=what, numbers=numbers
            )
        else:
            parts = [what, f"batch {done:,} of {total:,}", *([numbers] if numbers else [])]
            self.console.print(Text("   ".join(parts)), soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Clock:
    """Images per second, and the time that is left at the speed so far."""

    def __init__(self, done: int = 0, total: int = 0) -> None:
        self._first = self._done = done
        self._total = total
        self._start = self._shown = time.perf_counter()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Measure the speed from now on."""
        self._images, self._epoch_start = 0, time.perf_counter()

    def tick(self, images: int) -> None:
        """Count a batch."""
        self._done += 1
        self._images += images

    def due(self, every: float) -> bool:
        """Return whether numbers are to be shown again: reading them waits for the device."""
        if time.perf_counter() - self._shown < every:
            return False
        self._shown = time.perf_counter()
        return True

    @property
    def speed(self) -> float:
        """Images per second of training in this epoch."""
        return self._images / max(time.perf_counter() - self._epoch_start, 1e-9)

    @property
    def left(self) -> float:
        """Seconds left, validation included."""
        elapsed = time.perf_counter() - self._start
        return elapsed / max(self._done - self._first, 1) * (self._total - self._done)


def _cell(column: Column, value: float) -> str:
    return format(value, _FORMATS[column.kind])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
