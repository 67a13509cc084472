"""Compare each kernel with its formula in plain Python, once, on a few numbers.

The check uses no tensor, so that no mode, trace or autocast of PyTorch affects it. The inputs are
multiples of 1/16, which bfloat16 represents exactly: the expected results are the same for both
dtypes.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterator, Sequence

from convattn.ops.kernels.native.kernels import HEADS_TASK, MAPS, SLIDING_TASK, Kernels

# The largest difference that is attributed to rounding, relative to the largest expected number.
_TOLERANCES = {False: 1e-4, True: 3e-2}
_MIN_NORM = 1e-6

Found = tuple[str, Sequence[float], Sequence[float]]  # a result's name, the result, the expectation


class WrongResultError(RuntimeError):
    """The result of a compiled kernel differs from its formula."""


def check_kernels(kernels: Kernels) -> None:
    """Compute each kernel once in float32 and in bfloat16.

    Raises:
        WrongResultError: a result is wrong; the message names the kernel.
    """
    for half in (False, True):
        for check in _CHECKS:
            for name, found, expected in check(kernels, half):
                _compare(name, half, found, expected)


def _compare(name: str, half: bool, found: Sequence[float], expected: Sequence[float]) -> None:
    largest = max(map(abs, expected))
    for one, other in zip(found, expected, strict=True):
        if not abs(one - other) <= _TOLERANCES[half] * largest:
            dtype = "bfloat16" if half else "float32"
            raise WrongResultError(
                f"the compiled kernel {name!r} computes wrongly in {dtype}: {one:.6g}, expected "
                f"{other:.6g}"
            )


class _Array:
    """Numbers in memory, as a kernel reads and writes them."""

    def __init__(self, values: Sequence[float], half: bool = False) -> None:
        bits = struct.unpack(f"{len(values)}I", struct.pack(f"{len(values)}f", *values))
        if half:
            self._memory: ctypes.Array = (ctypes.c_uint16 * len(bits))(*(b >> 16 for b in bits))
        else:
            self._memory = (ctypes.c_uint32 * len(bits))(*bits)
        self.half = half
        self.address = ctypes.addressof(self._memory)

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers."""
        bits = (b << 16 for b in self._memory) if self.half else self._memory
        size = len(self._memory)
        return struct.unpack(f"{size}f", struct.pack(f"{size}I", *bits))


def _sample(size: int, seed: int) -> list[float]:
    return [((37 * i + 11 * seed) % 64 - 32) / 16 for i in range(size)]


def _zeros(size: int, half: bool = False) -> _Array:
    return _Array([0.0] * size, half)


def _workspace(size: int) -> ctypes.Array:
    return (ctypes.c_float * size)()


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _rows(values: Sequence[float], width: int) -> list[Sequence[float]]:
    return [values[i : i + width] for i in range(0, len(values), width)]


def _softmax(logits: Sequence[float]) -> list[float]:
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(exponentials) for x in exponentials]


def _norm(
    values: Sequence[float], weight: Sequence[float], bias: Sequence[float], eps: float
) -> list[float]:
    out: list[float] = []
    for row in _rows(values, len(weight)):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + eps)
        out += ((x - mean) / deviation * w + b for x, w, b in zip(row, weight, bias, strict=True))
    return out


def _check_layer_norm(kernels: Kernels, half: bool) -> Iterator[Found]:
    for width in (20, 64):  # a last vector that is not full, and only full vectors
        x, branch = _sample(2 * width, 1), _sample(2 * width, 2)
        weight, bias = _sample(width, 3), _sample(width, 4)
        total = [a + b for a, b in zip(x, branch, strict=True)]
        given = [_Array(values, half) for values in (x, branch, weight, bias)]
        sums, out = _zeros(2 * width, half), _zeros(2 * width, half)
        x_, branch_, weight_, bias_ = (array.address for array in given)
        options = 2, width, 1e-3, half, 1
        kernels.rows_layer_norm(x_, 0, 0, weight_, bias_, out.address, *options)
        yield "layer_norm", out.values, _norm(x, weight, bias, 1e-3)
        both = branch_, sums.address
        kernels.rows_layer_norm(x_, *both, weight_, bias_, out.address, *options)
        yield "add_layer_norm", sums.values, total
        yield "add_layer_norm", out.values, _norm(total, weight, bias, 1e-3)


def _check_directions(kernels: Kernels, half: bool) -> Iterator[Found]:
    x = [*_sample(20, 5), *[0.0] * 20]
    out, given = _zeros(40, half), _Array(x, half)
    kernels.rows_directions(given.address, out.address, 2, 20, _MIN_NORM, 2.5, half, 1)
    length = math.sqrt(_dot(x, x))
    yield "directions", out.values, [2.5 * value / length for value in x]


def _check_similarities(kernels: Kernels, half: bool) -> Iterator[Found]:
    pixels, slots, channels = 3, 5, 4
    products, u = _sample(pixels * slots, 6), _sample(pixels * channels, 7)
    e, pixel_rows = _Array(products, half), _Array(u, half)
    inverse_sums, totals = _zeros(pixels), _zeros(slots)
    workspace = _workspace(kernels.rows_workspace(pixels, slots))
    arrays = e, pixel_rows, inverse_sums, totals
    sizes = 1, pixels, slots, channels, pixels * channels
    addresses = *(a.address for a in arrays), ctypes.addressof(workspace)
    kernels.rows_similarities(*addresses, *sizes, _MIN_NORM, half, 1)
    expected = [
        math.exp(product / math.sqrt(_dot(row, row)))
        for row, products_of in zip(_rows(u, channels), _rows(products, slots), strict=True)
        for product in products_of
    ]
    yield "similarities_", e.values, expected
    yield "similarities_", inverse_sums.values, [1 / sum(row) for row in _rows(expected, slots)]
    yield "similarities_", totals.values, [sum(expected[i::slots]) for i in range(slots)]


def _check_scale(kernels: Kernels, half: bool) -> Iterator[Found]:
    x, scales = _sample(40, 8), [0.5, -3.0]
    given, factors = _Array(x, half), _Array(scales)
    kernels.rows_scale(given.address, factors.address, 2, 20, half, 1)
    yield "scale_rows_", given.values, [value * scales[i // 20] for i, value in enumerate(x)]


def _check_heads(kernels: Kernels, half: bool) -> Iterator[Found]:
    """Two windows of 2 x 2 pixels side by side, two heads of four channels."""
    channels, width, lanes, scale = 8, 4, 16, 0.5
    q, k, v = (_sample(8 * channels, seed) for seed in (9, 10, 11))
    mask = _sample(2 * 2 * 4 * lanes, 12)
    arrays = [*(_Array(x, half) for x in (q, k, v)), _zeros(8 * channels, half)]
    added = _Array(mask)
    strides = 8 * channels, width, 4 * channels, channels, half
    maps = MAPS[4].pack(*(n for a in arrays for n in (a.address, *strides)))
    mask_strides = 8 * lanes, 4 * lanes, lanes
    task = HEADS_TASK.pack(1, 2, width, 1, 2, 2, 2, 1, scale, *mask_strides)
    workspace = _workspace(kernels.heads_workspace(task))
    kernels.heads(task, maps, added.address, ctypes.addressof(workspace))
    expected = [0.0] * len(q)
    for window, head in ((w, h) for w in range(2) for h in range(2)):
        pixels = [row * 4 + 2 * window + column for row in range(2) for column in range(2)]
        starts = [pixel * channels + head * width for pixel in pixels]
        for i, query in enumerate(starts):
            logits = [
                scale * _dot(q[query : query + width], k[key : key + width])
                + mask[((window * 2 + head) * 4 + j) * lanes + i]
                for j, key in enumerate(starts)
            ]
            weights = _softmax(logits)
            for c in range(width):
                expected[query + c] = _dot(weights, [v[start + c] for start in starts])
    yield "attend_windows", arrays[3].values, expected


def _check_sliding(kernels: Kernels, half: bool) -> Iterator[Found]:
    """A map of 3 x 4 pixels, two heads of three channels, windows of 3 x 3, with a position."""
    H, W, C, d = 3, 4, 6, 3
    size, scale = H * W * C, 0.5
    q, k, v, dy = (_sample(size, seed) for seed in (13, 14, 15, 16))
    position = _sample(H * W * d, 17)
    inputs = [_Array(x, half) for x in (q, k, v)]
    origin, grad = _Array(position), _Array(dy, half)
    out, dq, dk, dv = _zeros(size, half), _zeros(size, half), _zeros(size), _zeros(size)
    task = SLIDING_TASK.pack(1, 2, d, H, W, H, W, 3, 1, 1, H, 1, scale)
    expected = _slide(q, k, v, position, dy, (H, W, C, d), scale)
    for backward, outputs in ((False, [out]), (True, [grad, dq, dk, dv])):
        packed: list[int] = []
        for a in [*inputs, origin, *outputs]:
            channels = d if a is origin else C
            packed += a.address, 0, 1, W * channels, channels, a.half
        workspace = _workspace(kernels.sliding_workspace(task, backward))
        maps = MAPS[len(packed) // 6].pack(*packed)
        kernels.sliding(task, maps, ctypes.addressof(workspace), backward)
    yield "sliding_window_native", out.values, expected[0]
    for found, gradient in zip((dq, dk, dv), expected[1:], strict=True):
        yield "sliding_window_native_backward", found.values, gradient


def _slide(
    q: Sequence[float],
    k: Sequence[float],
    v: Sequence[float],
    position: Sequence[float],
    dy: Sequence[float],
    shape: tuple[int, int, int, int],
    scale: float,
) -> list[list[float]]:
    """Return y, dq, dk and dv of a 3 x 3 window, channels last: the equations of `sliding.c`."""
    H, W, C, d = shape
    y, dq, dk, dv = ([0.0] * len(q) for _ in range(4))
    keys = [k[i] - position[i // C * d + i % d] for i in range(len(k))]
    for row, column, head in ((r, c, h) for r in range(H) for c in range(W) for h in range(C // d)):
        at = (row * W + column) * C + head * d
        seen = [
            (_mirror(row + i, H) * W + _mirror(column + j, W)) * C + head * d
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        query, grad = q[at : at + d], dy[at : at + d]
        weights = _softmax([scale * _dot(query, keys[j : j + d]) for j in seen])
        products = [_dot(grad, v[j : j + d]) for j in seen]
        mean = _dot(weights, products)
        for j, weight, product in zip(seen, weights, products, strict=True):
            change = scale * weight * (product - mean)
            for c in range(d):
                y[at + c] += weight * v[j + c]
                dq[at + c] += change * keys[j + c]
                dk[j + c] += change * query[c]
                dv[j + c] += weight * grad[c]
    return [y, dq, dk, dv]


def _mirror(x: int, size: int) -> int:
    x = abs(x)
    return x if x < size else 2 * (size - 1) - x


_CHECKS: tuple[Callable[[Kernels, bool], Iterator[Found]], ...] = (
    _check_layer_norm,
    _check_directions,
    _check_similarities,
    _check_scale,
    _check_heads,
    _check_sliding,
)
