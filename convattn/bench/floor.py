"""The arithmetic floor: the time that the multiply-adds of a computation take at peak speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F

from convattn.bench.timing import clock_of


@dataclass(frozen=True)
class Peak:
    """The highest measured number of multiply-adds per second of a device."""

    macs_per_second: float
    by: str  # the computation that reached it

    def as_dict(self) -> dict[str, float | str]:
        """Return the fields, for JSON."""
        return asdict(self)

    def floor(self, macs: int) -> float:
        """Return the seconds that ``macs`` multiply-adds take at this speed."""
        return macs / self.macs_per_second

    def share(self, macs: int, seconds: float) -> float:
        """Return the share of this speed that a computation reached."""
        return self.floor(macs) / seconds


def measure_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 1.0) -> Peak:
    """Measure the speed of large matrix products and convolutions, and return the highest.

    Which of them is the fastest depends on the library. On a GPU 3 x 3 convolutions are left out,
    because a library may compute them with fewer multiplications than are counted.

    Args:
        device: the device to measure.
        dtype: the type of the factors.
        seconds: the time for all candidates together; each runs at least three times.
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
    gpu = device.type == "cuda"
    # A GPU needs larger sizes to reach its peak.
    sides = (4096, 8192) if gpu else (768,)
    maps = ((64, 512, 1), (128, 1024, 1)) if gpu else ((4, 256, 1), (4, 256, 3), (4, 512, 3))
    found: dict[str, tuple[int, Callable[[], object]]] = {}
    for n in sides:
        a, b = torch.randn(2, n, n, device=device, dtype=dtype)
        found[f"product {n} x {n} x {n}"] = n**3, _quiet(torch.mm, a, b)
    for batch, c, k in maps:
        x = torch.randn(batch, c, 28, 28, device=device, dtype=dtype)
        weight = torch.randn(c, c, k, k, device=device, dtype=dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        call = _quiet(partial(F.conv2d, padding=k // 2), x, weight)
        found[f"{k} x {k} convolution ({batch}, {c}, 28, 28)"] = batch * 28**2 * (c * k) ** 2, call
    return found


def _quiet(function: Callable[..., object], *tensors: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return function(*tensors)

    return call
