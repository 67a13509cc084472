"""What a training shows while it runs: a live bar in a terminal, and a line per epoch anywhere."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from convattn.tasks.classification.callbacks import epoch_metrics, score
from convattn.tasks.classification.module import Classifier

_HEADING = " epoch      loss     acc   val loss    top-1    top-5   images/s     left"


class EpochLines(ProgressBar):
    """Print a line per epoch, and in a terminal a bar below with the epoch that is running.

    Args:
        console: where to write; the bar appears if it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._clock = _Clock()
        self._best: tuple[float, float] = (-1.0, float("-inf"))

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self.console.print(*args, **kwargs)

    def disable(self) -> None:
        """Be quiet: Lightning asks all processes but the first."""
        self.console = Console(quiet=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the heading, start the clock and the bar."""
        batches = int(trainer.num_training_batches)
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        self._clock = _Clock(done, batches * (trainer.max_epochs or 0))
        self.console.print(Text(_HEADING, style="bold"), soft_wrap=True)
        if self.console.is_terminal and trainer.is_global_zero:
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
        """Move the bar."""
        self._clock.tick(len(batch["target"]) * trainer.world_size)
        if self._bar is None or not self._clock.due():
            return
        assert isinstance(pl_module, Classifier)
        numbers = (
            f"loss {float(pl_module.train_loss.compute()):.4f}   "
            f"acc {float(pl_module.train_acc.compute()):.1%}   "
            f"{self._clock.speed:,.0f} images/s   {_duration(self._clock.left)} left"
        )
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._bar.update(self._task, completed=batch_idx + 1, description=epoch, numbers=numbers)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so."""
        if self._bar is not None:
            total = trainer.num_training_batches
            self._bar.update(self._task, completed=total, numbers="validating ...")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line."""
        found = epoch_metrics(trainer)
        is_best = score(found) > self._best
        self._best = max(self._best, score(found))
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        line = Text(
            f"{epoch:>7}  {found['train_loss']:8.4f}  {found['train_acc']:6.1%}   "
            f"{found['val_loss']:8.4f}  {found['val_top1']:7.2%}  {found['val_top5']:7.2%}  "
            f"{found['images_per_second']:9,.0f}  {_duration(self._clock.left):>7}"
            + ("  best" if is_best else ""),
            style="green" if is_best else "",
        )
        self.console.print(line, soft_wrap=True)  # its own style: the bar below keeps its own
        self._clock.start_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training has to beat."""
        return {"best": list(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read it back."""
        self._best = tuple(state_dict["best"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the bar away, also after an error."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away before anyone prints the error."""
        self._stop()

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
        """Measure the speed anew."""
        self._images, self._epoch_start = 0, time.perf_counter()

    def tick(self, images: int) -> None:
        """Count a batch."""
        self._done += 1
        self._images += images

    def due(self) -> bool:
        """Whether it is time to show numbers again: reading the metrics waits for the device."""
        if time.perf_counter() - self._shown < 0.2:
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
