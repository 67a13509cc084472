"""Computations in their own processes: results, errors, and the end of the processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convattn.bench import apart as module
from convattn.bench.apart import CaseError, apart
from convattn.bench.cases import Built, Case, Group
from convattn.bench.floor import Peak
from convattn.bench.run import run_group
from convattn.bench.timing import MIN_SAMPLE, Limits, clock_of, in_turn

ROUNDS = 6
CLOCK = clock_of("cpu")


def noted(path: Path, name: str) -> Built:
    """Append ``name`` to a file in every call; a call takes longer than the shortest sample."""
    x = torch.rand(1000)

    def call() -> torch.Tensor:
        with path.open("a") as file:
            file.write(name)
        time.sleep(MIN_SAMPLE)
        return (x + 1).sum()

    details = {"threads": torch.get_num_threads(), "process": os.getpid()}
    return Built(call, macs=70, note="look here", details=details)


def failing() -> Built:
    raise ValueError("no such size\nand more")


def killed() -> Built:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def ending_when_timed(calls: int) -> Built:
    left = [None] * calls
    return Built(lambda: left.pop() if left else os._exit(3))


def failing_when_timed(calls: int) -> Built:
    left = [None] * calls

    def call() -> None:
        if not left:
            raise IndexError("no more\nat all")
        left.pop()

    return Built(call)


def forking(flag: Path) -> Built:
    """End the process, and leave a child that holds the process's open files."""
    if os.fork() == 0:
        end = time.monotonic() + 20
        while not flag.exists() and time.monotonic() < end:
            time.sleep(0.05)
        if not flag.exists():
            flag.with_name("late").touch()
        os._exit(0)
    os._exit(4)


def cases_of(path: Path) -> list[Case]:
    return [
        Case(name, partial(noted, path, name), images=8, macs=lambda: 100, details={"size": 3})
        for name in "abc"
    ]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("three_threads")
def test_own_processes_give_the_same_result_as_one_process(tmp_path):
    paths = [tmp_path / "together", tmp_path / "apart"]
    together, apart = (
        run_group(
            Group("g", [*cases_of(path), Case("bad", failing)], apart=path == paths[1]),
            limits=Limits(rounds=ROUNDS, least=ROUNDS, warm=0),
            peak=Peak(1e3, ""),
            keep_going=True,
        )
        for path in paths
    )
    assert multiprocessing.active_children() == []

    assert apart.keys() == together.keys()
    assert apart["settings"] == {**together["settings"], "processes": "one each"}
    assert apart["errors"] == together["errors"] == {"bad": "no such size"}
    assert apart["rounds"] == together["rounds"] == ROUNDS
    runs, others = apart["runs"], together["runs"]
    assert list(runs) == list(others) == ["a", "b", "c"]
    for name in runs:
        assert list(runs[name]) == list(others[name])
        for key in ("note", "images", "macs", "memory_bytes", "size", "threads"):
            assert runs[name][key] == others[name][key], key
        assert (runs[name]["macs"], runs[name]["floor"]["macs"]) == (100, 70)
        assert all(MIN_SAMPLE <= second < 1 for second in runs[name]["seconds"])

    assert [run["threads"] for run in runs.values()] == [3, 3, 3]
    assert len({os.getpid(), *(run["process"] for run in runs.values())}) == 4

    rounds = "".join("".join(in_turn("abc", done)) for done in range(ROUNDS))
    # Each is built, called and measured before the next one; then all are warmed up.
    assert [path.read_text() for path in paths] == ["aabbcc" + "abc" + rounds] * 2


@pytest.mark.slow
def test_an_error_or_the_end_of_a_process_raises_a_case_error(tmp_path):
    """The parent does not wait for a process that has ended."""
    flag = tmp_path / "flag"
    cases = [
        Case("late", partial(failing_when_timed, 2)),
        Case("ending", partial(ending_when_timed, 2)),
        Case("killed", killed),
        Case("forking", partial(forking, flag)),
    ]
    with apart(cases, "cpu", CLOCK) as workers:
        late, ending = (workers.prepare(case).call for case in cases[:2])
        with pytest.raises(CaseError, match=r"^late failed: IndexError: no more$") as caught:
            workers.clock(late, 1)
        assert "in call\n" in str(caught.value.__cause__)
        with pytest.raises(CaseError, match=r"^ending: its process ended with exit status 3$"):
            workers.clock(ending, 1)
        with pytest.raises(CaseError, match=r"^killed: its process was ended by SIGKILL, as where"):
            workers.prepare(cases[2])
        with pytest.raises(CaseError, match=r"^forking: its process ended with exit status 4$"):
            workers.prepare(cases[3])
        assert not flag.with_name("late").exists()
        flag.touch()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_case_that_cannot_be_pickled_raises_before_a_process_starts(keep_going):
    group = Group("g", [Case("by hand", lambda: Built(lambda: None))], apart=True)
    with pytest.raises(TypeError, match=r"^by hand cannot run in a process of its own"):
        run_group(group, limits=Limits(), keep_going=keep_going)
    assert multiprocessing.active_children() == []


def sleeping(seconds: float) -> Built:
    def call() -> None:
        print("computing", flush=True)
        time.sleep(seconds)

    return Built(call)


def hold(seconds: float) -> None:
    """Print the process ids of two computations, and let one of them compute."""
    module._PATIENCE = 60.0  # the processes must end earlier
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    cases = [Case(name, partial(sleeping, seconds), memory=False) for name in "ab"]
    with apart(cases, "cpu", CLOCK) as workers:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        workers.prepare(cases[0])
        time.sleep(60)


def interrupt(numbers: list[int]) -> None:
    for number in numbers:
        os.kill(number, signal.SIGINT)
    time.sleep(0.3)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{number}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0), (signal.SIGINT, 60), (signal.SIGKILL, 2)]
)
def test_all_processes_end_with_the_parent(number, seconds):
    """Ctrl-C reaches the parent and all its children, or the parent is killed.

    The children ignore an interrupt, both while they start and while they compute.
    """
    command = f"from tests.bench.test_apart import hold; hold({seconds})"
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    children = [int(word) for word in process.stdout.readline().split()]
    assert len(children) == 2
    if seconds:  # else they are still starting
        interrupt(children)
        assert process.stdout.readline() == "computing\n"
        interrupt(children)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    end = time.monotonic() + 30
    while any(map(alive, children)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert errors.count("Traceback") == (number == signal.SIGINT)  # the parent's own


@pytest.mark.parametrize(("busy", "expected"), [(0.0, 0.004), (0.02, 0.024), (9.0, 0.3)])
def test_a_process_waits_until_its_threads_sleep(busy, expected, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(
        perf_counter=lambda: now[0],
        process_time=lambda: min(now[0], busy),
        sleep=lambda seconds: now.append(now.pop() + seconds),
    )
    monkeypatch.setattr(module, "time", clock)
    module._rest()
    assert now[0] == pytest.approx(expected, rel=0.02)
