"""Time several computations in alternating order: A B, B A, ..."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

Call = Callable[[], object]
Clock = Callable[[Call, int], float]  # (call, repeats) -> seconds of all calls

MIN_SAMPLE = 0.01  # seconds: a shorter computation is repeated within a sample


@dataclass(frozen=True)
class Times:
    """The measured times of each computation."""

    seconds: dict[str, list[float]]  # name -> seconds per call in each round
    calls: dict[str, int]  # name -> calls per sample


@dataclass(frozen=True)
class Limits:
    """When to stop: after ``rounds`` rounds, or after ``seconds``, but not before ``least``."""

    rounds: int = 50
    least: int = 5
    seconds: float = math.inf  # of all rounds, without warm-up
    warm: float = 0.1  # seconds of warm-up per computation; at least one call


def measure(
    calls: Mapping[str, Call],
    *,
    clock: Clock,
    limits: Limits,
    now: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] = lambda done: None,
) -> Times:
    """Warm up the computations, then time each once per round.

    Every computation is timed in every round: if the speed of the machine changes, all computations
    of that round are affected.

    Args:
        calls: the computations by name; `in_turn` orders them in every round.
        clock: times a sample; `clock_of` returns the clock of a device.
        limits: rounds and seconds.
        now: returns the time, for ``limits.seconds``.
        on_round: called after each round with the number of finished rounds.
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
    """Return the order of the names in a round, after ``done`` rounds: a balanced Latin square.

    A computation is slower after one that used much memory, because the caches have other contents.
    A rotation of the names would always keep the same predecessor. In n rounds (2 n if n is odd)
    each name has every place, and follows every other name, equally often (Williams, 1949).
    """
    size = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(size)]  # 0, 1, -1, 2, -2, ...
    order = [names[(place + done) % size] for place in zigzag]
    return order[::-1] if size % 2 and done // size % 2 else order


def clock_of(device: torch.device | str) -> Clock:
    """Return the clock of a device: CUDA events on a GPU, the performance counter on a CPU."""
    device = torch.device(device)
    return partial(_cuda_clock, device) if device.type == "cuda" else _cpu_clock


def _warm_up(call: Call, clock: Clock, seconds: float) -> int:
    """Call the computation for ``seconds``, at least once; return the calls per sample."""
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
    with torch.cuda.device(device):  # an event is recorded in the current device's stream
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
