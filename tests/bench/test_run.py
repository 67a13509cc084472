from __future__ import annotations

from typing import Any

import pytest
import torch

from convattn.bench import floor
from convattn.bench.cases import Built, Case, Group
from convattn.bench.floor import Peak, measure_peak
from convattn.bench.progress import Lines, Progress
from convattn.bench.run import run_group
from convattn.bench.timing import Limits
from tests.bench.clocks import FakeClock

LIMITS = Limits(rounds=3, least=3, warm=0)


def case(clock: FakeClock, name: str, **rest: Any) -> Case:
    return Case(name, lambda: Built(clock.task(name)), **rest)


def failing(name: str) -> Case:
    def build() -> Built:
        raise RuntimeError("out of memory\nand more")

    return Case(name, build)


def test_a_result_has_every_sample_and_the_statistics():
    clock = FakeClock({"a": [9.0, 1.0, 2.0, 4.0], "b": [9.0, 1.0, 1.0, 1.0]})
    group = Group("two", [case(clock, "a", images=8, macs=100), case(clock, "b")])
    found = run_group(group, limits=LIMITS, peak=Peak(200.0, "by hand"), clock=clock)
    run = found["runs"]["a"]
    assert run["seconds"] == [1.0, 2.0, 4.0]
    assert run["summary"]["median"] == 2.0
    assert run["floor"] == {"macs": 100, "seconds": 0.5, "share_reached": 0.25}
    assert (run["images"], run["macs"], run["calls_per_sample"]) == (8, 100, 1)
    assert found["runs"]["b"]["floor"] is None
    assert found["peak"] == {"macs_per_second": 200.0, "by": "by hand"}
    assert (found["name"], found["rounds"], found["errors"]) == ("two", 3, {})
    assert found["settings"] == {"device": "cpu", "dtype": "float32", "processes": "one"}


def test_the_floor_counts_the_multiply_adds_after_folding():
    clock = FakeClock({"a": [1.0] * 4})
    folded = Case("a", lambda: Built(clock.task("a"), macs=50, note="less"), macs=100)
    found = run_group(Group("g", [folded]), limits=LIMITS, peak=Peak(50.0, ""), clock=clock)
    run = found["runs"]["a"]
    assert (run["macs"], run["floor"]["macs"], run["note"]) == (100, 50, "less")


def test_memory_is_measured_if_the_case_asks_for_it():
    x = torch.rand(100_000)
    many = Case("many", lambda: Built(lambda: (x + 1).sum()))
    none = Case("none", lambda: Built(lambda: (x + 1).sum()), memory=False)
    found = run_group(Group("g", [many, none]), limits=Limits(rounds=1, least=1, warm=0))
    assert abs(found["runs"]["many"]["memory_bytes"] - 400_000) < 1000
    assert found["runs"]["none"]["memory_bytes"] is None


def test_an_error_is_raised_or_stored():
    clock = FakeClock({"a": [1.0] * 9})
    group = Group("g", [failing("worse"), case(clock, "a")])
    with pytest.raises(RuntimeError, match="out of memory"):
        run_group(group, limits=LIMITS, clock=clock)
    found = run_group(group, limits=LIMITS, clock=clock, keep_going=True)
    assert found["errors"] == {"worse": "out of memory"}
    assert list(found["runs"]) == ["a"]


def test_an_error_without_a_message_is_stored_by_its_class():
    class CompilationError(Exception): ...

    def build() -> Built:
        raise CompilationError

    found = run_group(Group("g", [Case("a", build)]), limits=LIMITS, keep_going=True)
    assert found["errors"] == {"a": "CompilationError"}


def test_a_group_whose_cases_all_fail_has_no_rounds():
    found = run_group(Group("g", [failing("a")]), limits=LIMITS, keep_going=True)
    assert (found["runs"], found["rounds"]) == ({}, 0)


def test_progress_shows_errors_notes_and_rounds(capsys: pytest.CaptureFixture[str]):
    import sys

    clock = FakeClock({"a": [1.0] * 9})
    progress: Progress = Lines(sys.stderr)
    progress.group("two words", 1, 4)
    noted = Case("a", lambda: Built(clock.task("a"), note="look here"))
    group = Group("g", [failing("worse"), noted])
    run_group(group, limits=LIMITS, clock=clock, keep_going=True, progress=progress)
    progress.done()
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/4] two words: worse failed: out of memory",
        "[1/4] two words: a: look here",
    ]
    assert last.startswith("[1/4] two words: 3 rounds, ")


def test_the_peak_is_the_fastest_run_of_the_fastest_candidate(monkeypatch):
    clock = FakeClock({"slow": [4.0, 4.0, 5.0], "fast": [9.0, 2.0, 3.0]})
    work = {name: (100, clock.task(name)) for name in ("slow", "fast")}
    monkeypatch.setattr(floor, "_candidates", lambda *_: work)
    monkeypatch.setattr(floor, "clock_of", lambda _: clock)
    assert measure_peak("cpu", torch.float32, seconds=0) == Peak(50.0, "fast")


def test_the_peak_is_measured_with_products_and_convolutions():
    found = measure_peak("cpu", torch.float32, seconds=0)
    assert found.macs_per_second > 1e8
    assert found.by.startswith(("product", "1 x 1 convolution", "3 x 3 convolution"))
    assert found.floor(int(found.macs_per_second)) == pytest.approx(1.0)
