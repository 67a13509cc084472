"""Times of several computations, measured in turns: A B, B A, ..."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

Call = Callable[[], object]
Clock = Callable[[Call, int], float]  # (what to call, how often) -> seconds of all calls

MIN_SAMPLE = 0.01  # seconds: a shorter computation is repeated within a sample


@dataclass(frozen=True)
class Times:
    """What was measured of each computation."""

    seconds: dict[str, list[float]]  # of one call, by name and round
    calls: dict[str, int]  # in each sample


@dataclass(frozen=True)
class Limits:
    """When to stop: at so many rounds, or earlier when the time is over."""

    rounds: int = 50
    least: int = 5
    seconds: float = math.inf  # of the rounds, without warming up
    warm: float = 0.1  # seconds of warming up each, with at least one call


def measure(
    calls: Mapping[str, Call],
    *,
    clock: Clock,
    limits: Limits,
    now: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] = lambda done: None,
) -> Times:
    """Warm each up, then time them in turns, so that all see the same moods of the machine.

    Args:
        calls: the computations by name; `in_turn` orders them anew in every round.
        clock: how a sample is timed; `clock_of` gives that of a device.
        limits: rounds and seconds.
        now: the time, for ``limits.seconds``.
        on_round: told the number of rounds that are done.
    """
    repeats = {name: _warm_up(call, clock, limits.warm) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start, done = now(), 0
    while done < limits.least or (done < limits.rounds and now() - start < limits.seconds):
        for name in in_turn(list(calls), done):
            seconds[name].append(clock(calls[name], repeats[name]) / repeats[name])
        done += 1
        on_round(done)
    return Times(seconds, repeats)


def in_turn(names: Sequence[str], done: int) -> list[str]:
    """Return the order of a round, after ``done`` others: no place and no neighbour is anybody's.

    What runs after a large computation finds neither its data in the caches nor its memory mapped,
    and a rotation alone would leave it there. In n rounds, or 2 n of an odd number n, each stands
    in every place, and right after every other one, equally often (Williams, 1949).
    """
    size = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(size)]  # 0, 1, -1, 2, -2, ...
    order = [names[(place + done) % size] for place in zigzag]
    return order[::-1] if size % 2 and done // size % 2 else order


def clock_of(device: torch.device | str) -> Clock:
    """Return the clock of a device: events of a GPU's stream, else the computer's."""
    device = torch.device(device)
    return partial(_cuda_clock, device) if device.type == "cuda" else _cpu_clock


def _warm_up(call: Call, clock: Clock, seconds: float) -> int:
    """Call until nothing is new any more, and return how many calls make a sample."""
    spent, fastest, done = 0.0, math.inf, 0
    while not done or spent < seconds:
        took = max(clock(call, 1), 1e-7)
        spent, fastest, done = spent + took, min(fastest, took), done + 1
    return max(1, math.ceil(MIN_SAMPLE / fastest))


def _cpu_clock(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def _cuda_clock(device: torch.device, call: Call, repeats: int) -> float:
    with torch.cuda.device(device):  # an event is of the current device's stream
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
