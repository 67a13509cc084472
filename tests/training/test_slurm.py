"""Jobs of SLURM, which its environment variables stand for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from convattn.tasks.classification import resume, train
from convattn.training.slurm import requeue
from tests.tasks.classification.runs import rows, silent, tiny, write_colors, written
from tests.training.test_signals import SignalAt

pytestmark = pytest.mark.slow  # trainings of seconds each

JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
JOB |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this process part of a job; return the file that ``scontrol`` writes its words to."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    write_colors(tmp_path)
    write_scontrol(tmp_path, f'echo "$*" > {tmp_path / "asked"}')
    return tmp_path / "asked"


def write_scontrol(folder: Path, text: str) -> None:
    path = folder / "bin" / "scontrol"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_sigusr1_saves_the_run_and_queues_the_job_again(
    tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = silent()
    stop = SignalAt("on_train_batch_start", 1, number=signal.SIGUSR1)
    config = tiny(tmp_path, name="run")
    stopped = train(config, callbacks=[stop], console=console)
    assert (stopped.stopped, stopped.signal) == (True, signal.SIGUSR1)
    assert (stopped.epochs_done, stopped.batches_done) == (1, 2)
    assert job.read_text() == "requeue 12\n"
    assert "job 12 is queued again" in written(console)
    assert not [*tmp_path.rglob("hpc_ckpt*")]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    console = silent()
    again = train(config, console=console)
    assert again.run_dir == stopped.run_dir
    assert "SLURM has started this job again" in written(console)
    assert [row["epoch"] for row in rows(again.run_dir)] == ["1", "2"]
    assert train(config, console=silent()).had_finished


def test_other_signals_do_not_queue_the_job_again(tmp_path: Path, job: Path) -> None:
    stop = SignalAt("on_train_batch_start", 1, epoch=0)
    assert train(tiny(tmp_path), callbacks=[stop], console=silent()).stopped
    assert not job.exists()


@pytest.mark.parametrize("changes", [{"seed": 3}, {"epochs": 9}])
def test_a_job_that_started_again_continues_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    train(tiny(tmp_path, name="run", epochs=1), console=silent())
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(FileExistsError, match="there is a run in"):
        train(tiny(tmp_path, **{"name": "run", "epochs": 1, **changes}), console=silent())


def test_a_first_start_continues_no_run(tmp_path: Path) -> None:
    train(tiny(tmp_path, name="run", epochs=1), console=silent())
    with pytest.raises(FileExistsError, match="there is a run in"):
        train(tiny(tmp_path, name="run", epochs=1), console=silent())


def test_a_new_run_reads_no_checkpoint_of_another_one(tmp_path: Path) -> None:
    other = train(tiny(tmp_path, name="other", epochs=1), console=silent())
    content = torch.load(other.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    for folder in (tmp_path, tmp_path / "runs"):
        torch.save(content, folder / "hpc_ckpt_1.ckpt")
    new = train(tiny(tmp_path, name="new"), console=silent())
    assert [row["epoch"] for row in rows(new.run_dir)] == ["1", "2"]


def test_the_reason_why_a_job_is_not_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scontrol(tmp_path, "echo Requested operation is presently disabled >&2; exit 1")
    assert requeue() == (
        "the job is not queued again: scontrol requeue 12: "
        "Requested operation is presently disabled"
    )
    (tmp_path / "bin" / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "No such file" in requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "12; rm")
    assert "SLURM_JOB_ID" in requeue()


def test_a_task_of_an_array_is_queued_again(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue() == "job 7_3 is queued again"
    assert job.read_text() == "requeue 7_3\n"


def test_resume_of_a_run_under_slurm(tmp_path: Path) -> None:
    stop = SignalAt("on_train_batch_start", 1, epoch=0)
    stopped = train(tiny(tmp_path), callbacks=[stop], console=silent())
    assert resume(stopped.run_dir, console=silent()).epochs_done == 2
