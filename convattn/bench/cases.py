"""What is measured: computations, and groups of them whose times are compared."""

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
    macs: int | None = None  # for the floor, where folding has left fewer of them
    note: str = ""  # for whoever reads the result
    details: dict[str, Any] = field(default_factory=dict)  # for the result


@dataclass(frozen=True)
class Case:
    """One computation of a group."""

    name: str
    build: Callable[[], Built]  # called when it is the group's turn; pickled where it runs apart
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
    apart: bool = False  # each computation in a process of its own, see `convattn.bench.apart`


@dataclass(frozen=True)
class Facts:
    """What is known of a computation before it is timed."""

    macs: int | None
    note: str
    details: dict[str, Any]
    memory: int | None  # bytes


@dataclass(frozen=True)
class Ready:
    """A computation whose first call is over."""

    call: Call
    facts: Facts


def prepare(case: Case, device: str) -> Ready:
    """Build a computation, call it once and measure its memory."""
    built = case.build()
    built.call()  # what is kept from call to call is there now
    memory = peak_memory(built.call, device) if case.memory else None
    return Ready(built.call, Facts(built.macs, built.note, built.details, memory))
