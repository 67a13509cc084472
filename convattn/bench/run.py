"""Measure a group of computations and return the result for JSON."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from convattn.bench.apart import apart, first_line
from convattn.bench.cases import Case, Facts, Group, Ready, prepare
from convattn.bench.floor import Peak
from convattn.bench.machine import describe_commit
from convattn.bench.progress import Progress, quiet
from convattn.bench.statistics import summarize
from convattn.bench.timing import Clock, Limits, Times, clock_of, measure


def run_group(
    group: Group,
    *,
    limits: Limits,
    peak: Peak | None = None,
    progress: Progress = quiet,
    keep_going: bool = False,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Build, warm up and time the computations of a group, and return the result for JSON.

    Args:
        group: the computations.
        limits: rounds, and seconds of the whole group, including the time to build it.
        peak: the device's peak speed, for the arithmetic floor.
        progress: shows the progress.
        keep_going: store a computation's error in the result and measure the others.
        clock: times a sample; None for the clock of the device.
    """
    start = time.perf_counter()
    clock = clock or clock_of(group.device)
    errors: dict[str, str] = {}
    with (apart if group.apart else _together)(group.cases, group.device, clock) as place:
        ready: dict[str, Ready] = {}
        for case in group.cases:
            progress.say(f"preparing {case.name}")
            try:
                ready[case.name] = place.prepare(case)
            except Exception as error:  # compilers of kernels define their own errors
                if not keep_going:
                    raise
                errors[case.name] = first_line(error)
                progress.warn(f"{case.name} failed: {errors[case.name]}")
            else:
                note = ready[case.name].facts.note
                if note:
                    progress.warn(f"{case.name}: {note}")
        seconds = limits.seconds - (time.perf_counter() - start)
        times = measure(
            {name: made.call for name, made in ready.items()},
            clock=place.clock,
            limits=replace(limits, seconds=seconds),
            on_round=lambda done: progress.round(done, limits.rounds),
        )
        facts = {name: made.facts for name, made in ready.items()}
        ready.clear()
    runs = {
        case.name: _result(case, facts[case.name], times, peak)
        for case in group.cases
        if case.name in facts
    }
    return {
        "name": group.name,
        "settings": {
            "device": group.device,
            "dtype": group.dtype,
            "processes": "one each" if group.apart else "one",
            **group.settings,
        },
        "commit": describe_commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": max((len(run["seconds"]) for run in runs.values()), default=0),
        "peak": peak.as_dict() if peak else None,
        "runs": runs,
        "errors": errors,
    }


@dataclass(frozen=True)
class _Together:
    """All computations of a group in this process."""

    device: str
    clock: Clock

    def prepare(self, case: Case) -> Ready:
        return prepare(case, self.device)


@contextmanager
def _together(cases: Sequence[Case], device: str, clock: Clock) -> Iterator[_Together]:
    """Run the computations in this process, and free their memory afterwards."""
    gpu = torch.device(device).type == "cuda"
    if gpu:
        torch.backends.cudnn.benchmark = True  # use the fastest kernel for each size
    yield _Together(device, clock)
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()


def _result(case: Case, facts: Facts, times: Times, peak: Peak | None) -> dict[str, Any]:
    seconds = times.seconds[case.name]
    summary = summarize(seconds)
    floor = None
    defined = case.macs() if callable(case.macs) else case.macs
    macs = facts.macs if facts.macs is not None else defined
    if peak is not None and macs is not None:
        floor = {
            "macs": macs,
            "seconds": peak.floor(macs),
            "share_reached": peak.share(macs, summary.median),
        }
    return {
        **case.details,
        **facts.details,
        **({"note": facts.note} if facts.note else {}),
        "images": case.images,
        "macs": defined,
        "memory_bytes": facts.memory,
        "floor": floor,
        "summary": summary.as_dict(),
        "calls_per_sample": times.calls[case.name],
        "seconds": seconds,
    }
