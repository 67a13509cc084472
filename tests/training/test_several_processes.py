"""Two processes that train together on the CPU."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from convattn.runs.results import read_run
from convattn.runs.weights import read_ckpt
from convattn.tasks.classification import train
from tests.tasks.classification.runs import silent, tiny, write_colors
from tests.training.started import all_ended, started, wait_for
from tests.training.test_stopping import words

slow_linux = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc"),
]


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_find_unused_parameters_true_spawn"])
def test_spawned_processes_are_refused_with_the_fix(tmp_path: Path, strategy: str) -> None:
    write_colors(tmp_path)
    with pytest.raises(ValueError, match=rf"strategy={strategy} is not possible: .*strategy=ddp"):
        train(tiny(tmp_path, devices=2, strategy=strategy), console=silent())
    assert not (tmp_path / "runs").exists()


class TestStarted:
    """Trainings in processes of their own."""

    pytestmark = slow_linux

    @pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
    def test_two_processes_report_what_they_reached(self, tmp_path: Path, strategy: str) -> None:
        write_colors(tmp_path)
        log = tmp_path / "log"
        changes = {"devices": 2, "strategy": strategy, "workers": 0, "epochs": 2}
        with started(log, *words(tmp_path, "run", **changes)) as process:
            assert process.wait(300) == 0, log.read_text()
            assert all_ended(process.pid)
        text = log.read_text()
        assert ", epoch 1 of 2" in text or ", epoch 2 of 2" in text
        assert text.count("Next:") == 1
        assert len(read_run(tmp_path / "runs" / "run").epochs) == 2
        assert not (tmp_path / "runs" / ".other-processes").exists()

    @pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_to_the_group_stops_all(
        self, tmp_path: Path, strategy: str, number: signal.Signals
    ) -> None:
        write_colors(tmp_path, count=200)
        log, run = tmp_path / "log", tmp_path / "runs" / "run"
        changes = {"devices": 2, "strategy": strategy, "workers": 1, "batch_size": 2}
        with started(log, *words(tmp_path, "run", **changes)) as process:
            wait_for(run / "metrics.csv", process, lines=2)
            time.sleep(0.5)
            os.killpg(process.pid, number)
            assert process.wait(120) == 128 + number, log.read_text()
            assert all_ended(process.pid)
        assert log.read_text().count("which are saved. Continue with") == 1
        assert read_ckpt(run / "checkpoints" / "last.ckpt")["convattn"]["epochs_done"] >= 1
