"""Which path of an operator runs: what the caller says, else the override, else its own rule."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from convattn.ops._checks import check_choice

# Every path of any operator. An operator that lacks the overriding one keeps its own rule.
PATHS = ("reference", "tiled", "dense", "folded", "grouped", "taps", "sdpa", "shifted")

# A plain variable: torch.compile reads it once and guards on it.
_override: str | None = None


def resolve(backend: str, choices: Collection[str]) -> str:
    """Return the path to take: ``backend``, or for "auto" the override where it is a choice.

    Args:
        backend: what the caller asked for.
        choices: the paths of the operator.

    Returns:
        One of ``choices``, or "auto": the operator's own rule decides.

    Raises:
        ValueError: ``backend`` is neither "auto" nor one of ``choices``.
    """
    check_choice("backend", backend, ("auto", *choices))
    if backend == "auto" and _override is not None and _override in choices:
        return _override
    return backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Send every operator whose backend is "auto" down the path ``name``, where it has one.

    ``with use_backend("reference"): ...`` runs the plain formulas in a whole model.

    Raises:
        ValueError: no operator has a path of that name.
    """
    check_choice("backend", name, ("auto", *PATHS))
    global _override
    before, _override = _override, None if name == "auto" else name
    try:
        yield
    finally:
        _override = before
