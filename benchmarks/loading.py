"""Measure how fast image files are loaded, and how much loading slows a training down.

python -m benchmarks.loading --data folder:cifar10
python -m benchmarks.loading --data folder:cifar10 --epochs 2

The first command measures loading alone, and training steps whose batches come from the files or
are held in memory. The batches in memory are the same tensors, already transformed. Files and
memory take turns. The second command also trains for whole epochs with `convattn.train`, and
records the speed and the resident memory of every process at the end of each epoch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback as TrainerCallback

from benchmarks.common import RESULTS
from convattn.bench.machine import slug
from convattn.bench.record import new_document
from convattn.data import Batch, Transform, open_dataset, train_loader
from convattn.tasks.classification import TrainConfig, load_config
from convattn.tasks.classification.task import Classification
from convattn.tasks.table import train
from convattn.training.data import TaskData
from convattn.training.module import TaskModule

_WARM = 8  # batches before a measurement: more than the loading processes prefetch
_HELD = 40  # batches in memory
Step = Callable[[Batch], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; return the exit status."""
    args = _parser().parse_args(argv)
    config = _config(args)
    document = new_document(
        "loading",
        command=_command(args),
        device="cpu",
        settings={"model": config.model, "batch_size": config.batch_size},
    )
    path = args.output or RESULTS / f"{slug(document['machine'])}-loading.json"
    document["steps"] = _short_runs(config, args) if args.rounds else []
    if args.epochs:
        document["epochs"] = _whole_epochs(config, args)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"results: {path}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", required=True, help="folder:PATH or timm:NAME")
    parser.add_argument("--model", default="glnet_nano", help="default glnet_nano")
    parser.add_argument("--recipe", default="nano", help="default nano")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="loading processes, one measurement each; whole epochs have the last; default 0 1 2",
    )
    parser.add_argument("--threads", type=int, help="threads of the model; default PyTorch's")
    parser.add_argument("--batches", type=int, default=40, help="per sample; default 40")
    parser.add_argument(
        "--rounds", type=int, default=3, help="samples of each; default 3; 0: only whole epochs"
    )
    parser.add_argument("--epochs", type=int, default=0, help="whole epochs; default none")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/NAME-loading.json")
    return parser


def _command(args: argparse.Namespace) -> str:
    """Return the command that measures the file again, without private folders."""
    kind, _, path = args.data.partition(":")
    words = ["python", "-m", "benchmarks.loading", "--data", f"{kind}:{Path(path).name}"]
    words += ["--model", args.model, "--recipe", args.recipe]
    words += ["--threads", str(args.threads)] if args.threads else []
    words += ["--workers", *map(str, args.workers)]
    for option in ("batches", "rounds", "epochs"):
        words += [f"--{option}", str(getattr(args, option))]
    return shlex.join(words)


def _config(args: argparse.Namespace) -> TrainConfig:
    settings: dict[str, Any] = {"model": args.model, "data": args.data, "accelerator": "cpu"}
    if args.threads:
        settings["threads"] = args.threads
        torch.set_num_threads(args.threads)
    return load_config(args.recipe, settings)


def _short_runs(config: TrainConfig, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure loading alone, then training from files and from memory in turns."""
    torch.manual_seed(config.seed)
    task = Classification(config, open_dataset(config.data))
    built = task.build()
    data = TaskData(task, built.card.preprocess)
    step = _step(task, TaskModule(task, built.model, built.card, data))
    found = []
    transform = task.train_transform(built.card.preprocess)
    for workers in args.workers:
        batches = _batches(data, transform, workers)
        held = list(itertools.islice(batches, min(args.batches, _HELD)))
        memory = itertools.cycle(held)
        speeds: dict[str, list[float]] = {"loading": [], "files": [], "memory": []}
        for _ in range(args.rounds):
            speeds["loading"].append(_speed(batches, args.batches))
            speeds["files"].append(_speed(batches, args.batches, step))
            speeds["memory"].append(_speed(memory, args.batches, step))
        ratios = [f / m for f, m in zip(speeds["files"], speeds["memory"], strict=True)]
        found.append({"workers": workers, **speeds, "files_over_memory": ratios})
        middle = {name: statistics.median(values) for name, values in speeds.items()}
        print(
            f"{workers} workers: loading {middle['loading']:,.0f} images/s, training from files "
            f"{middle['files']:,.0f}, from memory {middle['memory']:,.0f}: "
            f"{statistics.median(ratios):.0%}",
            file=sys.stderr,
        )
    return found


def _batches(data: TaskData, transform: Transform, workers: int) -> Iterator[Batch]:
    """Yield training batches without end, as a training on a CPU loads them."""
    loader = train_loader(
        data.source.train,
        transform,
        batch_size=data.batch_size,
        workers=workers,
        low_priority=True,
        collate=data.task.collate,
    )
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader


def _step(task: Classification, module: TaskModule) -> Step:
    """Return what the training does with a batch: losses, gradients, update, average."""
    module.model.train()
    (optimizer,), _ = module.configure_optimizers()

    def step(batch: Batch) -> None:
        task.losses(module.model, batch, 0).loss.backward()
        if task.config.clip_grad:
            torch.nn.utils.clip_grad_norm_(module.model.parameters(), task.config.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        if module.ema is not None:
            module.ema.update(module.model, step=1)

    return step


def _speed(batches: Iterator[Batch], count: int, step: Step | None = None) -> float:
    """Return images per second over ``count`` batches, after batches that are not timed."""
    start, images = 0.0, 0
    for number in range(_WARM + count):
        if number == _WARM:
            start, images = time.perf_counter(), 0
        batch = next(batches)
        if step is not None:
            step(batch)
        images += len(batch["index"])
    return images / (time.perf_counter() - start)


class _WatchMemory(TrainerCallback):
    """Record speed and memory of the training at the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self._before = set(multiprocessing.active_children())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch."""
        speed = float(trainer.callback_metrics["images_per_second"])
        loading = set(multiprocessing.active_children()) - self._before
        main = _resident(os.getpid())
        others = [_resident(process.pid) for process in loading if process.pid is not None]
        self.epochs.append(
            {"images_per_second": speed, "main_megabytes": main, "worker_megabytes": others}
        )


def _whole_epochs(config: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Train for whole epochs, in a folder that is removed."""
    watch = _WatchMemory()
    with tempfile.TemporaryDirectory() as runs:
        changes = {"epochs": args.epochs, "runs": runs, "workers": args.workers[-1]}
        run = train(load_config(args.recipe, {**_given(config), **changes}), callbacks=[watch])
        return {
            "threads": config.threads or torch.get_num_threads(),
            "workers": args.workers[-1],
            "epochs": watch.epochs,
            "seconds": run.seconds,
            "train": len(run.source.train),
            "val": len(run.source.val),
        }


def _given(config: TrainConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def _resident(pid: int) -> int:
    """Return the resident memory of a process in megabytes, on Linux."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    sys.exit(main())
