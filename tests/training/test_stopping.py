"""Signals to all processes of a training: the main process saves, and no process is left."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from convattn.runs.weights import read_ckpt
from tests.tasks.classification.runs import TINY, timeless, weights, write_colors
from tests.training.started import all_ended, session, started, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc"),
]


def words(folder: Path, name: str, **changes: Any) -> list[str]:
    """Return the command line of a small training with two loading processes."""
    values = {**TINY, "workers": 2, "batch_size": 4, "epochs": 999, "name": name, **changes}
    values |= {"data": f"folder:{folder / 'colors'}", "runs": folder / "runs"}
    return [f"{key}={value}" for key, value in values.items()]


def progress(run: Path) -> tuple[int, int]:
    """Return the epochs and batches that a run has saved."""
    found = read_ckpt(run / "checkpoints" / "last.ckpt")["convattn"]
    return found["epochs_done"], found["batches_done"]


@pytest.mark.parametrize(
    ("method", "number", "accumulate"),
    [
        ("fork", signal.SIGTERM, 1),
        ("fork", signal.SIGINT, 16),
        ("spawn", signal.SIGINT, 16),
        ("spawn", signal.SIGTERM, 1),
        ("forkserver", signal.SIGINT, 1),
        ("forkserver", signal.SIGTERM, 16),
    ],
)
def test_a_signal_to_the_group_is_a_stop(
    tmp_path: Path, method: str, number: signal.Signals, accumulate: int
) -> None:
    write_colors(tmp_path, count=100)
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    with started(log, *words(tmp_path, "run", accumulate=accumulate), method=method) as process:
        wait_for(run / "metrics.csv", process, lines=2)
        time.sleep(random.random())
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number, log.read_text()
        assert all_ended(process.pid)
    assert "which are saved. Continue with" in log.read_text()
    done = progress(run)
    assert f"Stopped after {done[0]} epochs" + (f" and {done[1]} batches" if done[1] else "") in (
        log.read_text()
    )


@pytest.mark.parametrize("accumulate", [1, 16])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_signal_to_every_process_is_a_stop(tmp_path: Path, method: str, accumulate: int) -> None:
    """As SLURM and systemd do: the loading processes are ended as well."""
    write_colors(tmp_path, count=100)
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    with started(log, *words(tmp_path, "run", accumulate=accumulate), method=method) as process:
        wait_for(run / "metrics.csv", process, lines=2)
        time.sleep(random.random())
        for pid in sorted(session(process.pid), reverse=random.random() < 0.5):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
        assert all_ended(process.pid)
    assert progress(run) > (0, 0)


def test_killed_runs_continue_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in the first epoch, within others, and while a checkpoint is written."""
    write_colors(tmp_path, count=60)
    log = tmp_path / "log"
    changes: dict[str, Any] = {"epochs": 3, "accumulate": 2, "ema": True, "mixup": 0.4}
    changes |= {"ema_decay": 0.9}
    changes |= {"auto_augment": "rand-m5-inc1", "checkpoint_minutes": 0.003}
    with started(log, *words(tmp_path, "straight", **changes)) as process:
        assert process.wait(120) == 0, log.read_text()
    run = tmp_path / "runs" / "killed"
    arguments = words(tmp_path, "killed", **changes)
    for number in range(4):
        with started(log, *arguments) as process:
            wait_for(run / "config.yaml", process)
            if number % 2:
                wait_for_any(run / "checkpoints", ".convattn-*", process)
            else:
                wait_for(run / "checkpoints" / "last.ckpt", process)
                time.sleep(random.random() / 2)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert all_ended(process.pid)
        arguments = ["--resume", str(run)]
    with started(log, *arguments) as process:
        assert process.wait(120) == 0, log.read_text()
    assert not [*run.rglob(".convattn-*")]
    assert timeless(run) == timeless(tmp_path / "runs" / "straight")
    for name in ("best", "last"):
        ours, theirs = weights(run, name), weights(tmp_path / "runs" / "straight", name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def wait_for_any(folder: Path, pattern: str, process: Any) -> None:
    """Wait until a file of that pattern appears, or the training ends."""
    while process.poll() is None and not [*folder.glob(pattern)]:
        time.sleep(0.0005)
