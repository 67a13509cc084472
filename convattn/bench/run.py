"""A group of computations, measured side by side: what it takes and what it returns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import torch

from convattn.bench.floor import Peak
from convattn.bench.machine import describe_commit
from convattn.bench.memory import peak_memory
from convattn.bench.progress import Progress, quiet
from convattn.bench.statistics import summarize
from convattn.bench.timing import Call, Clock, Limits, clock_of, measure


@dataclass(frozen=True)
class Built:
    """A computation that is ready to run."""

    call: Call
    macs: int | None = None  # for the floor, where folding has left fewer of them
    note: str = ""  # for whoever reads the result
    details: dict[str, Any] = field(default_factory=dict)  # for the result


@dataclass(frozen=True)
class Case:
    """One computation of a group."""

    name: str
    build: Callable[[], Built]  # called when it is the group's turn
    images: int = 1  # in a call
    macs: int | Callable[[], int] | None = None  # of a call; a function where counting takes long
    details: dict[str, Any] = field(default_factory=dict)  # for the result
    memory: bool = True  # whether to measure it


@dataclass(frozen=True)
class Group:
    """Computations whose times are compared: they take turns in every round."""

    name: str
    cases: Sequence[Case]
    device: str = "cpu"
    dtype: str = "float32"
    settings: dict[str, Any] = field(default_factory=dict)  # for the result
    weight: float = 1.0  # its share of the time, beside other groups


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
        group: what to measure.
        limits: rounds, and seconds of the whole group; building it counts.
        peak: the device's speed, for the arithmetic floor.
        progress: told what is going on.
        keep_going: note a computation's error in the result and go on with the others.
        clock: how a sample is timed; None for the device's own.
    """
    start = time.perf_counter()
    if torch.device(group.device).type == "cuda":
        torch.backends.cudnn.benchmark = True  # the fastest kernel for each size, for all sides
    ready: dict[str, Built] = {}
    memory: dict[str, int | None] = {}
    errors: dict[str, str] = {}
    for case in group.cases:
        progress.say(f"preparing {case.name}")
        try:
            built = case.build()
            built.call()  # what is kept from call to call is there now
            memory[case.name] = peak_memory(built.call, group.device) if case.memory else None
            ready[case.name] = built
        except Exception as error:  # compilers of kernels have errors of their own
            if not keep_going:
                raise
            errors[case.name] = str(error).strip().split("\n")[0] or type(error).__name__
            progress.warn(f"{case.name} failed: {errors[case.name]}")
        else:
            if built.note:
                progress.warn(f"{case.name}: {built.note}")
    seconds = limits.seconds - (time.perf_counter() - start)
    times = measure(
        {name: built.call for name, built in ready.items()},
        clock=clock or clock_of(group.device),
        limits=replace(limits, seconds=seconds),
        on_round=lambda done: progress.round(done, limits.rounds),
    )
    runs = {
        case.name: _result(
            case,
            ready[case.name],
            times.seconds[case.name],
            times.calls[case.name],
            memory[case.name],
            peak,
        )
        for case in group.cases
        if case.name in ready
    }
    ready.clear()
    _free(group.device)
    return {
        "name": group.name,
        "settings": {"device": group.device, "dtype": group.dtype, **group.settings},
        "commit": describe_commit(),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": max((len(run["seconds"]) for run in runs.values()), default=0),
        "peak": peak.as_dict() if peak else None,
        "runs": runs,
        "errors": errors,
    }


def _result(
    case: Case,
    built: Built,
    seconds: list[float],
    calls: int,
    memory: int | None,
    peak: Peak | None,
) -> dict[str, Any]:
    summary = summarize(seconds)
    floor = None
    defined = case.macs() if callable(case.macs) else case.macs
    macs = built.macs if built.macs is not None else defined
    if peak is not None and macs is not None:
        floor = {
            "macs": macs,
            "seconds": peak.floor(macs),
            "share_reached": peak.share(macs, summary.median),
        }
    return {
        **case.details,
        **built.details,
        **({"note": built.note} if built.note else {}),
        "images": case.images,
        "macs": defined,
        "memory_bytes": memory,
        "floor": floor,
        "summary": summary.as_dict(),
        "calls_per_sample": calls,
        "seconds": seconds,
    }


def _free(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
