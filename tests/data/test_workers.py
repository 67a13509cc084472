"""Loading processes: they leave signals to the main process and end with it."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data import (
    Batch,
    BatchTransferError,
    ImageSet,
    Sample,
    SharedMemoryFullError,
    collate_lists,
    eval_loader,
    is_lost_worker,
    train_loader,
)
from convattn.data.source import ArrayImages
from tests.data.loader_loop import BATCHES, EPOCHS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
METHODS = [
    "fork",
    pytest.param("spawn", marks=pytest.mark.slow),
    pytest.param("forkserver", marks=pytest.mark.slow),
]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FULL = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the program in a process group of its own; a program that hangs is killed."""
    command = [sys.executable, "-m", "tests.data.loader_loop", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        read_until(process, "start")
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], *words: str) -> list[str]:
    """Return the lines up to one that begins with one of the words, or all."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith(words):
            break
    return lines


@contextmanager
def signals_to_group(process: subprocess.Popen[str]) -> Iterator[None]:
    """Send each signal in turn, every 50 ms."""
    stopped = threading.Event()

    def send() -> None:
        for number in itertools.cycle(SIGNALS):
            os.killpg(process.pid, number)
            if stopped.wait(0.05):
                break

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def alive_after(pids: list[int], seconds: float = 4) -> list[int]:
    """Return which of the processes are still alive after a while, at once if none is."""
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(word) for word in read_until(process, "workers")[-1].split()[1:]]


@pytest.mark.parametrize("method", METHODS)
def test_signals_to_the_process_group_lose_no_batch(method: str) -> None:
    with running(method) as process:
        with signals_to_group(process):
            lines = read_until(process, "end", "lost", "error")
        assert lines[-1] == "end\n"
        assert sum(line.startswith("batch") for line in lines) == BATCHES * EPOCHS
        seen = read_until(process, "seen")[-1].split()[1:]
        assert seen == [str(int(number)) for number in sorted(SIGNALS)]
        assert process.wait() == 0


@pytest.mark.slow
def test_workers_of_another_thread_are_protected_as_well() -> None:
    with running("fork", "thread") as process:
        with signals_to_group(process):
            lines = read_until(process, "end", "lost", "error")
        assert sum(line.startswith("batch") for line in lines) == BATCHES * EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_end_with_a_killed_main_process(method: str) -> None:
    with running(method) as process:
        workers = workers_of(process)
        assert len(workers) == 2
        process.kill()
        assert alive_after(workers) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_somebody_ends_is_recognised(number: int) -> None:
    with running("fork") as process:
        workers = workers_of(process)
        os.kill(workers[0], number)
        lines = read_until(process, "end", "lost", "error")
        assert lines[-1].startswith("lost")
        process.wait()
        assert alive_after(workers) == []


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 30417) is killed by signal: Terminated. ",
        "DataLoader worker (pid 30417) exited unexpectedly with exit code 1. Details are lost",
        "DataLoader worker (pid(s) 26004, 26005) exited unexpectedly",
        "Pin memory thread exited unexpectedly",
    ],
)
def test_messages_of_a_lost_worker(text: str) -> None:
    assert is_lost_worker(RuntimeError(text))


def test_a_connection_to_an_ended_process_is_a_lost_worker(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Client(str(tmp_path / "listener"))
    assert is_lost_worker(caught.value)


def test_other_errors_are_no_lost_worker(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "missing").read_text()
    for error in (caught.value, RuntimeError("CUDA out of memory"), EOFError(), ValueError("pid")):
        assert not is_lost_worker(error)


def test_an_error_of_a_transform_is_no_lost_worker() -> None:
    def missing(image: Image.Image, target: Any) -> Any:
        raise FileNotFoundError("labels.txt")

    with pytest.raises(FileNotFoundError, match=r"labels\.txt") as caught:
        list(train_loader(images(), missing, batch_size=2, workers=1))
    assert not is_lost_worker(caught.value)


@pytest.mark.skipif(not hasattr(os, "nice"), reason="the system has no priorities like Unix")
@pytest.mark.parametrize("low_priority", [False, True])
def test_loading_processes_have_a_low_priority_where_it_is_asked_for(low_priority: bool) -> None:
    def priority(image: Image.Image, target: Any) -> tuple[torch.Tensor, int]:
        return torch.zeros(1), os.nice(0)

    for loader in (train_loader, eval_loader):
        batches = loader(images(), priority, batch_size=4, workers=1, low_priority=low_priority)
        found = next(iter(batches))["target"].tolist()
        assert all((value > os.nice(0)) == low_priority for value in found)


@pytest.mark.parametrize("workers", [0, 1])
def test_full_shared_memory_is_a_clear_error(workers: int) -> None:
    def full(samples: list[Sample]) -> Batch:
        raise RuntimeError(FULL)

    with pytest.raises(SharedMemoryFullError, match=r"workers=0.*--shm-size") as caught:
        list(train_loader(images(), to_tensor, batch_size=2, workers=workers, collate=full))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_really_full_shared_memory_is_a_clear_error() -> None:
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "
    run = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*run, small + "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the system lets this user mount nothing: {error}")
    program = small + f"{sys.executable} -m tests.data.loader_loop fork main 400"
    done = subprocess.run([*run, program], capture_output=True, text=True, timeout=120)
    assert "SharedMemoryFullError" in done.stdout
    assert "/dev/shm (1 MB) is full" in done.stdout


@pytest.fixture
def limited() -> Iterator[None]:
    """Raise an error in place of waiting forever."""

    def too_late(*_: object) -> None:
        raise TimeoutError("no batch has come")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Targets(ImageSet):
    """Eight images with targets that a function makes."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 8

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (4, 4))

    def target(self, index: int) -> Any:
        return self.make(index)


def load(make: Callable[[int], Any], collate: Callable[[Any], Any] = collate_lists) -> list[Batch]:
    """Load all targets in one batch in a loading process."""
    return list(eval_loader(Targets(make), to_tensor, batch_size=8, workers=1, collate=collate))


class Unsendable:
    """An object whose pickling raises an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize(
    "make", [lambda index: {"load": lambda: index}, lambda _: Unsendable(ValueError("a lock"))]
)
def test_a_batch_that_cannot_be_sent_is_a_clear_error(make: Callable[[int], Any]) -> None:
    with pytest.raises(BatchTransferError, match=r"cannot be sent.*workers=0") as caught:
        load(make)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("limited")
def test_shared_memory_that_is_full_when_a_target_is_sent_is_a_clear_error() -> None:
    with pytest.raises(SharedMemoryFullError, match="--shm-size"):
        load(lambda _: Unsendable(RuntimeError(FULL)))


def limit_files(number: int) -> None:
    """Limit the number of open files of this process; those that are open stay open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


@pytest.mark.usefixtures("limited")
def test_small_tensors_need_no_open_file_each() -> None:
    def many(index: int) -> list[torch.Tensor]:
        if index == 0:
            limit_files(max(map(int, os.listdir("/proc/self/fd"))) + 30)
        return [torch.full((3,), index)] * 2 + [torch.arange(n) for n in range(100)]

    (batch,) = load(many)
    for index, tensors in enumerate(batch["target"]):
        assert tensors[0].tolist() == [index] * 3
        assert [len(tensor) for tensor in tensors[2:]] == list(range(100))
        assert tensors[-1].tolist() == list(range(99))


@pytest.mark.usefixtures("limited")
def test_too_many_open_files_are_a_clear_error() -> None:
    def none(index: int) -> torch.Tensor:
        limit_files(1)
        return torch.zeros(3)

    with pytest.raises(BatchTransferError, match=r"too many open files.*ulimit -n.*workers=0"):
        load(none)


@dataclass
class Labelled:
    masks: torch.Tensor
    name: str


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.usefixtures("limited")
def test_targets_of_any_type_arrive_unchanged() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    kept: dict[str, Any] = {
        "object": Labelled(torch.ones(2, 3), "cat"),
        "transposed": base.T,
        "view": base[1:, 1],
        "array": np.arange(6).reshape(2, 3)[:, ::2],
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(3),
        "sparse": torch.eye(3).to_sparse(),
        "grad": torch.ones(2, requires_grad=True),
        "none": None,
    }
    (batch,) = load(lambda _: kept)
    for found in batch["target"]:
        assert found["object"].name == "cat"
        assert torch.equal(found["object"].masks, torch.ones(2, 3))
        assert np.array_equal(found["array"], kept["array"])
        assert found["grad"].requires_grad
        assert found["none"] is None
        for name in ("transposed", "view", "bool", "bfloat16", "empty", "number", "grad"):
            assert torch.equal(found[name], kept[name])
            assert found[name].dtype == kept[name].dtype
        assert torch.equal(found["sparse"].to_dense(), torch.eye(3))
    found["bfloat16"] += 1  # it can be written to
    assert found["bfloat16"].tolist() == [2] * 3


def images() -> ArrayImages:
    return ArrayImages(np.zeros((4, 4, 4), np.uint8), [0, 1, 2, 3])


def to_tensor(image: Image.Image, target: Any) -> tuple[torch.Tensor, Any]:
    return torch.from_numpy(np.array(image))[None].float(), target
