"""A clock for tests, which returns given times."""

from __future__ import annotations

from collections.abc import Callable


class FakeClock:
    """Returns the given seconds per call, and records the names of the calls."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self._seconds = {name: iter(values) for name, values in seconds.items()}
        self.calls: list[tuple[str, int]] = []
        self.now = 0.0
        self._last = ""

    def task(self, name: str) -> Callable[[], None]:
        def call() -> None:
            self._last = name

        return call

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        call()
        self.calls.append((self._last, repeats))
        took = next(self._seconds[self._last]) * repeats
        self.now += took
        return took
