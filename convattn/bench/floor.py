"""The arithmetic floor: what a computation would take if it did nothing but multiply and add."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from convattn.bench.timing import clock_of


@dataclass(frozen=True)
class Peak:
    """The most multiply-adds that a device was seen to do in a second."""

    macs_per_second: float
    by: str  # the computation that reached it

    def as_dict(self) -> dict[str, float | str]:
        """Return it for JSON."""
        return asdict(self)

    def floor(self, macs: int) -> float:
        """Return the seconds that so many multiply-adds take at this speed."""
        return macs / self.macs_per_second

    def share(self, macs: int, seconds: float) -> float:
        """Return which share of this speed a computation reached."""
        return self.floor(macs) / seconds


def measure_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 1.0) -> Peak:
    """Measure the speed of the largest products: a square one, and 1 x 1 convolutions.

    Libraries differ in which of them they do best. No 3 x 3 convolution is among them: some compute
    it with fewer multiplications than are counted.

    Args:
        device: where.
        dtype: of the factors.
        seconds: to spend, shared among the candidates; each runs three times at least.
    """
    device = torch.device(device)
    clock = clock_of(device)
    found = []
    candidates = _candidates(device, dtype)
    for name, (macs, call) in candidates.items():
        best, end = float("inf"), time.perf_counter() + seconds / len(candidates)
        runs = 0
        while runs < 3 or time.perf_counter() < end:
            best, runs = min(best, clock(call, 1)), runs + 1
        found.append(Peak(macs / best, name))
    return max(found, key=lambda peak: peak.macs_per_second)


@torch.inference_mode()
def _candidates(
    device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[int, Callable[[], object]]]:
    # A GPU needs far more to be busy.
    sides = (4096, 8192) if device.type == "cuda" else (768, 1536)
    maps = ((64, 512), (128, 1024)) if device.type == "cuda" else ((4, 256), (8, 512))
    found: dict[str, tuple[int, Callable[[], object]]] = {}
    for n in sides:
        a, b = torch.randn(2, n, n, device=device, dtype=dtype)
        found[f"product {n} x {n} x {n}"] = n**3, _quiet(torch.mm, a, b)
    for batch, c in maps:
        x = torch.randn(batch, c, 28, 28, device=device, dtype=dtype)
        weight = torch.randn(c, c, 1, 1, device=device, dtype=dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        name = f"1 x 1 convolution ({batch}, {c}, 28, 28)"
        found[name] = batch * 28 * 28 * c * c, _quiet(F.conv2d, x, weight)
    return found


def _quiet(function: Callable[..., object], *tensors: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return function(*tensors)

    return call
