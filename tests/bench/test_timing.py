from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from convattn.bench.timing import MIN_SAMPLE, Limits, clock_of, measure
from tests.bench.clocks import FakeClock


def tasks(clock: FakeClock, *names: str):
    return {name: clock.task(name) for name in names}


def rounds_of(names: str, number: int) -> list[str]:
    """Return the calls of each round, after a warm-up in the order of the names."""
    clock = FakeClock({name: [1.0] * (number + 1) for name in names})
    measure(tasks(clock, *names), clock=clock, limits=Limits(rounds=number, least=1))
    called = "".join(name for name, _ in clock.calls)
    size = len(names)
    assert called[:size] == names
    return [called[i : i + size] for i in range(size, len(called), size)]


def test_every_computation_runs_once_per_round_after_the_warm_up():
    assert rounds_of("abc", 3) == ["abc", "bca", "cab"]
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in rounds_of("abcd", 9))


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"])
def test_the_orders_of_the_rounds_are_balanced(names):
    """A computation that always follows the slowest one would always start with cold caches."""
    size = len(names)
    rounds = rounds_of(names, size * (1 + size % 2))
    places = Counter((name, place) for order in rounds for place, name in enumerate(order))
    assert set(places.values()) == {len(rounds) // size}
    after = Counter(pair for order in rounds for pair in pairwise(order))
    assert len(after) == size * (size - 1)
    assert len(set(after.values())) <= 1


def test_samples_are_stored_by_name_and_round():
    clock = FakeClock({"a": [9.0, 1.0, 2.0], "b": [9.0, 3.0, 4.0]})
    found = measure(tasks(clock, "a", "b"), clock=clock, limits=Limits(rounds=2, least=1))
    assert found.seconds == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


def test_the_warm_up_lasts_as_long_as_asked():
    clock = FakeClock({"a": [0.04] * 9})
    measure(tasks(clock, "a"), clock=clock, limits=Limits(rounds=1, least=1, warm=0.1))
    assert len(clock.calls) == 3 + 1


def test_a_short_computation_is_repeated_and_divided():
    clock = FakeClock({"a": [MIN_SAMPLE / 4] * 9})
    found = measure(tasks(clock, "a"), clock=clock, limits=Limits(rounds=2, least=1, warm=0))
    assert found.calls == {"a": 4}
    assert [repeats for _, repeats in clock.calls] == [1, 4, 4]
    assert found.seconds["a"] == [MIN_SAMPLE / 4] * 2


def test_rounds_end_after_the_time_and_the_least_number():
    for least, expected in ((2, 4), (6, 6)):
        clock = FakeClock({"a": [1.0] * 99})
        limits = Limits(rounds=50, least=least, seconds=3.5)
        now = partial(getattr, clock, "now")
        found = measure(tasks(clock, "a"), clock=clock, limits=limits, now=now)
        assert len(found.seconds["a"]) == expected


def test_the_number_of_rounds_is_limited():
    clock = FakeClock({"a": [1.0] * 99})
    done: list[int] = []
    limits = Limits(rounds=7, least=5)
    measure(tasks(clock, "a"), clock=clock, limits=limits, on_round=done.append)
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_cuda_events_are_recorded_on_the_device_that_is_measured(monkeypatch):
    """An event belongs to the current device, which may not be the device that is measured."""
    current = [0]

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *error: object) -> None:
            current.pop()

    seen: list[int] = []
    event = SimpleNamespace(record=lambda: seen.append(current[-1]), elapsed_time=lambda end: 8.0)
    monkeypatch.setattr("torch.cuda.device", Device)
    monkeypatch.setattr("torch.cuda.Event", lambda **_: event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: seen.append(current[-1]))
    assert clock_of("cuda:1")(lambda: seen.append(current[-1]), 2) == 0.008
    assert seen == [1] * 6  # synchronize, start, two calls, end, synchronize


def test_the_clock_of_a_cpu_runs_every_call():
    calls: list[int] = []
    took = clock_of(torch.device("cpu"))(lambda: calls.append(1), 5)
    assert len(calls) == 5
    assert took >= 0
