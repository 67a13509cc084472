"""Computations to measure, and groups of computations whose times are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from convattn.bench.memory import peak_memory
from convattn.bench.timing import Call


@dataclass(frozen=True)
class Built:
    """A computation that is ready to run."""

    call: Call
    macs: int | None = None  # multiply-adds after folding, for the arithmetic floor
    note: str = ""  # for the reader of the result
    details: dict[str, Any] = field(default_factory=dict)  # for the result


@dataclass(frozen=True)
class Case:
    """One computation of a group."""

    name: str
    build: Callable[[], Built]  # called when the group is measured; pickled for its own process
    images: int = 1  # per call
    macs: int | Callable[[], int] | None = None  # per call; a function if counting takes long
    details: dict[str, Any] = field(default_factory=dict)  # for the result
    memory: bool = True  # whether to measure the peak memory


@dataclass(frozen=True)
class Group:
    """Computations whose times are compared: they take turns in every round."""

    name: str
    cases: Sequence[Case]
    device: str = "cpu"
    dtype: str = "float32"
    settings: dict[str, Any] = field(default_factory=dict)  # for the result
    weight: float = 1.0  # relative share of the time among the groups
    apart: bool = False  # each computation in its own process, see `convattn.bench.apart`


@dataclass(frozen=True)
class Facts:
    """The facts about a computation that are known before it is timed."""

    macs: int | None
    note: str
    details: dict[str, Any]
    memory: int | None  # peak, in bytes


@dataclass(frozen=True)
class Ready:
    """A computation that was called once."""

    call: Call
    facts: Facts


def prepare(case: Case, device: str) -> Ready:
    """Build a computation, call it once and measure its memory."""
    built = case.build()
    built.call()  # allocates what later calls reuse
    memory = peak_memory(built.call, device) if case.memory else None
    return Ready(built.call, Facts(built.macs, built.note, built.details, memory))
