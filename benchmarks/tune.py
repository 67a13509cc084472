"""Time the paths that depend on a tuned constant, with its value and with other values.

``python -m benchmarks.tune NAME [NAME ...]``: the values take turns, in one process; the table
shows the median of the rounds and the quartiles. `convattn.ops.tuned` has the constants.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.tables import table
from convattn import ACmix, ops
from convattn.ops import tuned
from convattn.ops.acmix.convolution import convolve
from convattn.ops.acmix.folding import Connected, fold_map_convolution
from convattn.ops.convolution.feed_forward import feed_forward
from convattn.ops.tokens.heads import attend_heads
from convattn.ops.tokens.linear import linear

Work = Callable[[], object]
ROUNDS = 15


@dataclass(frozen=True)
class Tuning:
    """The values to try for a constant, and the calls to time, by name."""

    values: Sequence[Any]
    works: dict[str, Work]


def _sliding(
    channels: int,
    size: int,
    backend: str,
    *,
    grad: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Work:
    maps = [
        torch.randn(8, channels, size, size, dtype=dtype)
        .to(memory_format=torch.channels_last)
        .requires_grad_(grad)
        for _ in range(3)
    ]

    def work() -> object:
        y = ops.sliding_window_attention(*maps, num_heads=4, window_size=7, backend=backend)
        return torch.autograd.grad(y.sum(), maps) if grad else y

    return work


def _slots(channels: int, size: int, *, grad: bool = False) -> Work:
    u = torch.randn(8, channels, size, size).to(memory_format=torch.channels_last)
    slots = torch.randn(8, 64, channels)
    leaves = [t.requires_grad_(grad) for t in (u, slots)]

    def work() -> object:
        with torch.set_grad_enabled(grad):
            y = ops.cluster_and_dispatch(slots, u, 1.0, lambda s: s)
            return torch.autograd.grad(y.sum(), leaves) if grad else y

    return work


def _heads(tokens: int, backend: str, *, grad: bool = False) -> Work:
    qkv = torch.randn(8, tokens, 768, dtype=torch.bfloat16, requires_grad=grad)

    def work() -> object:
        with torch.set_grad_enabled(grad), ops.use_backend(backend):
            y = attend_heads(qkv, 8)
            return torch.autograd.grad(y.sum(), qkv) if grad else y

    return work


def _linear(tokens: int) -> Work:
    x, weight, bias = (
        torch.randn(shape, dtype=torch.bfloat16) for shape in ((8, tokens, 256), (768, 256), (768,))
    )
    return lambda: linear(x, weight, bias)


def _feed_forward(channels: int, size: int) -> Work:
    x = torch.randn(8, channels, size, size).to(memory_format=torch.channels_last)
    first, last = (torch.randn(n, m, 1, 1) for n, m in ((3, 1), (1, 3)))
    weights = [w.repeat(channels, channels, 1, 1) for w in (first, last)]
    biases = [torch.randn(len(w)) for w in weights]
    return lambda: feed_forward(x, weights[0], biases[0], None, None, weights[1], biases[1])


def _training(channels: int, size: int, heads: int = 4, **options: Any) -> Work:
    layer = ACmix(channels, num_heads=heads, attention="global", **options)
    x = torch.randn(8, channels, size, size).to(memory_format=torch.channels_last)
    return lambda: layer(x).sum().backward()


def _deployed(channels: int, size: int, heads: int) -> Work:
    """Time one or two convolutions in the place of ACmix's, and what puts them there."""
    d = channels // heads
    parts = Connected(*(torch.randn(n) for n in ((d, 9, channels), (d, 9), (channels, 9, 3, 3))))
    x = torch.randn(16, channels, size, size).to(memory_format=torch.channels_last)

    def work() -> object:
        folded = fold_map_convolution(parts, stride=1)
        maps = x if folded.connect is None else F.conv2d(x, *folded.connect)
        return convolve(maps, folded.kernels, 1, 1, folded.groups)

    return work


def tunings() -> dict[str, Tuning]:
    """Return how each constant is measured."""
    bands = {f"(256, {n}x{n})": _sliding(256, n, "bands") for n in (14, 18)}
    tiles = {f"({c}, {n}x{n})": _sliding(c, n, "tiled") for c, n in ((64, 56), (128, 28))}
    native = {f"(64, {n}x{n})": _sliding(64, n, "native", grad=True) for n in (56, 28)}
    dense = {
        f"(256, {n}x{n}), float64": _sliding(256, n, "auto", dtype=torch.float64)
        for n in (14, 18, 26)
    }
    # "native" refuses float64.
    shares = {
        f"(256, {n}x{n}), float64": _sliding(256, n, "auto", dtype=torch.float64)
        for n in (11, 14, 17)
    }
    sizes = {f"(256, {n}x{n})": _sliding(256, n, "auto") for n in (7, 9, 10)}
    strips = {f"({c}, {n}x{n})": _sliding(c, n, "strips") for c, n in ((64, 56), (256, 14))}
    backward = {f"(64, {n}x{n})": _sliding(64, n, "strips", grad=True) for n in (56, 14)}
    slots = {f"({c}, {n}x{n})": _slots(c, n) for c, n in ((64, 56), (256, 14))}
    slots["(64, 56x56) with gradients"] = _slots(64, 56, grad=True)
    products = {f"{n} tokens": _heads(n, "products") for n in (64, 196)}
    stored = {f"{n} tokens": _heads(n, "auto", grad=True) for n in (49, 64, 100, 196)}
    tokens = {f"8 x {n} tokens": _linear(n) for n in (49, 64, 196)}
    maps = {f"({c}, {n}x{n})": _feed_forward(c, n) for c, n in ((64, 56), (128, 28))}
    wide = ((64, 56, 4), (128, 28, 4), (256, 14, 4), (192, 28, 6))
    trained = {f"({c}, {n}x{n}), N = {heads}": _training(c, n, heads) for c, n, heads in wide}
    deployed = {f"({c}, {n}x{n}), N = {heads}": _deployed(c, n, heads) for c, n, heads in wide}
    return {
        "BAND_ROWS": Tuning((1, 2, 3, 4), bands),
        "BAND_SHARE": Tuning((0.0, 0.6, 1.0), shares),
        "DENSE_CHANS": Tuning((0, 128, 256), trained),
        "DENSE_SPEED": Tuning((0.0, 1.5, 4.0), deployed),
        "MERGED_OUTPUTS": Tuning((1, 16, 32), deployed),
        "PROJECTED_OUTPUTS": Tuning((1, 4, 8), trained),
        "SLOT_TILE_LOGITS": Tuning(tuple(1 << n for n in (17, 18, 19, 20, 22)), slots),
        "SLOT_TILE_PIXELS": Tuning((1 << 10, 1 << 11, 1 << 12, 1 << 13), slots),
        "DENSE_MARGIN": Tuning((0, 4, 12), dense),
        "NATIVE_MARGIN": Tuning((0, 2, 4), sizes),
        "NATIVE_WORKSPACE": Tuning(
            ((1 << 16, 1 << 17), (1 << 17, 1 << 18), (1 << 18, 1 << 19)), native
        ),
        "SIMILARITIES_KEPT": Tuning((0, 2**22, 2**24), slots),
        "STRIP_LOGITS": Tuning((1 << 16, 1 << 18, 1 << 20), strips),
        "STRIP_SPANS": Tuning((((2, 4), (2, 4)), ((2, 8), (2, 4)), ((4, 8), (4, 4))), strips),
        "STRIP_SPANS_BACKWARD": Tuning(
            (((2, 4), (2, 4)), ((2, 8), (2, 7)), ((4, 8), (4, 7))), backward
        ),
        "TILE_SPAN": Tuning((4, 7, 14), tiles),
        "HEADS_TILE_LOGITS": Tuning((1 << 17, 1 << 19, 1 << 21), products),
        "MAX_STORED_TOKENS": Tuning((0, 64, 256), stored),
        "MANY_TOKENS": Tuning((0, 1024, 1 << 20), tokens),
        "FFN_PIXELS": Tuning((1 << 12, 1 << 13, 1 << 20), maps),
    }


def measure(name: str, tuning: Tuning, rounds: int = ROUNDS) -> list[tuple[str, ...]]:
    """Return a row for each call, with its milliseconds for each value; the values take turns."""
    kept = getattr(tuned, name)
    rows = []
    try:
        for label, work in tuning.works.items():
            times: dict[Any, list[float]] = {value: [] for value in tuning.values}
            for i in range(rounds + 1):
                for value in tuning.values:
                    setattr(tuned, name, value)
                    start = time.perf_counter()
                    work()
                    if i:  # the first round warms up
                        times[value].append(1e3 * (time.perf_counter() - start))
            rows.append((label, *(_summary(times[value]) for value in tuning.values)))
    finally:
        setattr(tuned, name, kept)
    return rows


def _summary(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return f"{middle:.2f} ({low:.2f} - {high:.2f})"


def main() -> None:
    """Print a table for each named constant, or for all constants."""
    known = tunings()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*known, []], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    for name in options.names or known:
        tuning = known[name]
        print(f"{name} = {getattr(tuned, name)}, in ms on {torch.get_num_threads()} threads")
        heads = [str(value) for value in tuning.values]
        print(table(("", *heads), measure(name, tuning, options.rounds)), end="\n\n")


if __name__ == "__main__":
    main()
