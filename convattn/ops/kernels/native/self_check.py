"""Compare each kernel with its formula in plain Python, on a few numbers.

Together, the samples have several images, vectors, chunks and bands, of which the last is not full.
The check uses no tensor, so that no mode, trace or autocast of PyTorch affects it. The inputs are
multiples of 1/16, which bfloat16 represents exactly: the expected results are the same for both
dtypes.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from operator import mul
from typing import NamedTuple

from convattn.ops.kernels.native.library import (
    HEADS_TASK,
    MAPS,
    SLIDING_TASK,
    Kernels,
    WrongResultError,
)

# The largest difference that is attributed to rounding, relative to the largest expected number.
_TOLERANCES = {False: 1e-4, True: 3e-2}
_HALF = False, True  # float32, bfloat16
_MIN_NORM = 1e-6
_SCALE = 0.5
_LANES = 16  # the largest number of lanes of a vector

Found = tuple[str, bool, Sequence[float], Sequence[float]]  # name, half, result, expected result


class _Heads(NamedTuple):
    """Sizes of a sample of window attention."""

    images: int
    heads: int
    head_dim: int
    down: int  # windows of an image
    across: int
    rows: int  # of a window
    columns: int


class _Sliding(NamedTuple):
    """Sizes of a sample of sliding-window attention; the windows have 3 x 3 pixels."""

    images: int
    heads: int
    head_dim: int
    height: int
    breadth: int
    stride: int
    dilation: int
    band: int  # rows of queries


_LAYER_NORMS = (2, 36), (2, 64), (129, 2)  # rows, channels
_SIMILARITIES = (2, 3, 36, 20), (1, 129, 2, 2)  # images, pixels, slots, channels
_HEADS = {_Heads(1, 2, 4, 2, 2, 2, 2): True, _Heads(2, 1, 3, 1, 1, 5, 10): False}  # with a mask?
_SLIDING = (
    _Sliding(1, 2, 3, 4, 3, stride=1, dilation=1, band=4),
    _Sliding(1, 1, 17, 5, 3, stride=2, dilation=1, band=3),
    _Sliding(2, 2, 1, 5, 4, stride=2, dilation=3, band=2),
    _Sliding(1, 1, 2, 1, 37, stride=2, dilation=3, band=1),
)


def check_kernels(kernels: Kernels) -> None:
    """Compute the samples of each kernel in float32 and in bfloat16.

    Raises:
        WrongResultError: a result is wrong; the message names the kernel.
    """
    for check in _CHECKS:
        for result in check(kernels):
            _compare(*result)


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
    return [(((4813 * i >> 7) + 11 * seed) % 64 - 32) / 16 for i in range(size)]


def _zeros(size: int, half: bool = False) -> _Array:
    return _Array([0.0] * size, half)


def _workspace(size: int) -> ctypes.Array:
    return (ctypes.c_float * size)()


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(map(mul, a, b))


def _length(x: Sequence[float]) -> float:
    return math.sqrt(_dot(x, x))


def _rows(values: Sequence[float], width: int) -> list[Sequence[float]]:
    return [values[i : i + width] for i in range(0, len(values), width)]


def _ends(values: Sequence[float], width: int) -> list[float]:
    """Return the first and the last row."""
    return [*values[:width], *values[-width:]]


def _softmax(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    exponentials = [math.exp(x - largest) for x in logits]
    total = sum(exponentials)
    return [x / total for x in exponentials]


def _norm(
    values: Sequence[float], weight: Sequence[float], bias: Sequence[float], eps: float
) -> list[float]:
    out: list[float] = []
    for row in _rows(values, len(weight)):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + eps)
        out += ((x - mean) / deviation * w + b for x, w, b in zip(row, weight, bias, strict=True))
    return out


def _check_layer_norm(kernels: Kernels) -> Iterator[Found]:
    for (rows, width), half in product(_LAYER_NORMS, _HALF):
        x, branch = _sample(rows * width, 1), _sample(rows * width, 2)
        weight, bias = _sample(width, 3), _sample(width, 4)
        total = _ends([a + b for a, b in zip(x, branch, strict=True)], width)
        given = [_Array(values, half) for values in (x, branch, weight, bias)]
        sums, out = _zeros(rows * width, half), _zeros(rows * width, half)
        x_, branch_, weight_, bias_ = (array.address for array in given)
        options = rows, width, 1e-3, half, 1
        kernels.rows_layer_norm(x_, 0, 0, weight_, bias_, out.address, *options)
        expected = _norm(_ends(x, width), weight, bias, 1e-3)
        yield "layer_norm", half, _ends(out.values, width), expected
        both = branch_, sums.address
        kernels.rows_layer_norm(x_, *both, weight_, bias_, out.address, *options)
        yield "add_layer_norm", half, _ends(sums.values, width), total
        expected = _norm(total, weight, bias, 1e-3)
        yield "add_layer_norm", half, _ends(out.values, width), expected


def _check_directions(kernels: Kernels) -> Iterator[Found]:
    rows = _sample(36, 5), [0.0] * 36, _sample(36, 6)
    expected = [2.5 * x / (_length(row) or 1) for row in rows for x in row]
    for half in _HALF:
        given, out = _Array([x for row in rows for x in row], half), _zeros(3 * 36, half)
        kernels.rows_directions(given.address, out.address, 3, 36, _MIN_NORM, 2.5, half, 1)
        yield "directions", half, out.values, expected


def _check_similarities(kernels: Kernels) -> Iterator[Found]:
    for images, pixels, slots, channels in _SIMILARITIES:
        step = pixels * channels + 1  # from one image of u to the next
        products, u = _sample(images * pixels * slots, 6), _sample(images * step, 7)
        starts = [b * step + p * channels for b in range(images) for p in range(pixels)]
        lengths = [_length(u[at : at + channels]) for at in starts]
        expected = [math.exp(x / lengths[i // slots]) for i, x in enumerate(products)]
        inverse = [1 / sum(row) for row in _rows(expected, slots)]
        summed = [sum(x[m::slots]) for x in _rows(expected, pixels * slots) for m in range(slots)]
        for half in _HALF:
            e, vectors = _Array(products, half), _Array(u, half)
            inverse_sums, totals = _zeros(images * pixels), _zeros(images * slots)
            workspace = _workspace(images * kernels.rows_workspace(pixels, slots))
            addresses = (array.address for array in (e, vectors, inverse_sums, totals))
            options = images, pixels, slots, channels, step, _MIN_NORM, half, 1
            kernels.rows_similarities(*addresses, ctypes.addressof(workspace), *options)
            yield "similarities_", half, e.values, expected
            yield "similarities_", half, inverse_sums.values, inverse
            yield "similarities_", half, totals.values, summed


def _check_scale(kernels: Kernels) -> Iterator[Found]:
    x, scales = _sample(3 * 36, 8), [0.5, -3.0, 2.0]
    expected = [value * scales[i // 36] for i, value in enumerate(x)]
    for half in _HALF:
        given, factors = _Array(x, half), _Array(scales)
        kernels.rows_scale(given.address, factors.address, 3, 36, half, 1)
        yield "scale_rows_", half, given.values, expected


def _check_heads(kernels: Kernels) -> Iterator[Found]:
    for s, masked in _HEADS.items():
        tokens, windows = s.rows * s.columns, s.down * s.across
        size = s.images * windows * tokens * s.heads * s.head_dim
        q, k, v = (_sample(size, seed) for seed in (9, 10, 11))
        padded = tokens + -tokens % _LANES
        mask = _sample(windows * s.heads * tokens * padded, 12) if masked else []
        expected = _attend(s, q, k, v, mask)
        for half in _HALF:
            found = _run_heads(kernels, s, (q, k, v), mask, half)
            yield "attend_windows", half, [found[i] for i in expected], list(expected.values())


def _run_heads(
    kernels: Kernels, s: _Heads, qkv: Sequence[list[float]], mask: list[float], half: bool
) -> tuple[float, ...]:
    tokens, C = s.rows * s.columns, s.heads * s.head_dim
    padded, size = tokens + -tokens % _LANES, len(qkv[0])
    arrays = [*(_Array(x, half) for x in qkv), _zeros(size, half)]
    strides = size // s.images, s.head_dim, s.across * s.columns * C, C, half
    maps = MAPS[4].pack(*(n for a in arrays for n in (a.address, *strides)))
    task = HEADS_TASK.pack(*s, 1, _SCALE, s.heads * tokens * padded, tokens * padded, padded)
    workspace, added = _workspace(kernels.heads_workspace(task)), _Array(mask)
    kernels.heads(task, maps, added.address if mask else 0, ctypes.addressof(workspace))
    return arrays[3].values


def _attend(
    s: _Heads, q: list[float], k: list[float], v: list[float], mask: list[float]
) -> dict[int, float]:
    """Return the outputs of up to 8 queries of each window by index: the equation of `heads.c`."""
    tokens, d = s.rows * s.columns, s.head_dim
    padded, C, W = tokens + -tokens % _LANES, s.heads * d, s.across * s.columns
    out = {}
    for image, window, head in product(range(s.images), range(s.down * s.across), range(s.heads)):
        top, left = window // s.across * s.rows, window % s.across * s.columns
        rows = (image * s.down * s.rows + top + row for row in range(s.rows))
        starts = [(row * W + left + x) * C + head * d for row in rows for x in range(s.columns)]
        for i in range(0, tokens, -(-tokens // 8)):
            query = q[starts[i] : starts[i] + d]
            logits = [_SCALE * _dot(query, k[at : at + d]) for at in starts]
            if mask:
                first = (window * s.heads + head) * tokens * padded + i
                logits = [x + mask[first + j * padded] for j, x in enumerate(logits)]
            weights = _softmax(logits)
            for c in range(d):
                out[starts[i] + c] = _dot(weights, [v[at + c] for at in starts])
    return out


def _check_sliding(kernels: Kernels) -> Iterator[Found]:
    for s in _SLIDING:
        C, pixels = s.heads * s.head_dim, s.images * s.height * s.breadth
        queries = s.images * -(-s.height // s.stride) * -(-s.breadth // s.stride)
        sizes = queries * C, pixels * C, pixels * C, pixels * s.head_dim, queries * C
        inputs = [_sample(size, 13 + i) for i, size in enumerate(sizes)]
        y, *grads = _slide(s, *inputs)
        for half in _HALF:
            out, *found = _run_sliding(kernels, s, inputs, half)
            yield "sliding_window_native", half, out, y
            for gradient, expected in zip(found, grads, strict=True):
                yield "sliding_window_native_backward", half, gradient, expected


def _run_sliding(
    kernels: Kernels, s: _Sliding, inputs: list[list[float]], half: bool
) -> list[tuple[float, ...]]:
    """Return y, dq, dk and dv for q, k, v, the position and dy."""
    rows, columns = -(-s.height // s.stride), -(-s.breadth // s.stride)
    q, k, v, position, dy = (_Array(x, half and i != 3) for i, x in enumerate(inputs))
    y, dq = (_zeros(len(inputs[0]), half) for _ in range(2))
    dk, dv = (_zeros(len(inputs[1])) for _ in range(2))
    sizes = *s[:5], rows, columns, 3, s.stride, s.dilation, s.band
    task = SLIDING_TASK.pack(*sizes, 1, _SCALE)
    for backward, outputs in ((False, [y]), (True, [dy, dq, dk, dv])):
        packed: list[int] = []
        for a in [q, k, v, position, *outputs]:
            height, width = (rows, columns) if a in (q, y, dy, dq) else (s.height, s.breadth)
            channels = s.head_dim if a is position else s.heads * s.head_dim
            row = width * channels
            packed += a.address, height * row, 1, row, channels, a.half
        workspace = _workspace(kernels.sliding_workspace(task, backward))
        maps = MAPS[len(packed) // 6].pack(*packed)
        kernels.sliding(task, maps, ctypes.addressof(workspace), backward)
    return [x.values for x in (y, dq, dk, dv)]


def _slide(
    s: _Sliding,
    q: list[float],
    k: list[float],
    v: list[float],
    position: list[float],
    dy: list[float],
) -> list[list[float]]:
    """Return y, dq, dk and dv, channels last: the equations of `sliding.c`."""
    H, W, d = s.height, s.breadth, s.head_dim
    C, columns = s.heads * d, range(-(-W // s.stride))
    y, dq, dk, dv = ([0.0] * len(x) for x in (q, q, k, v))
    keys = [x - position[i // C * d + i % d] for i, x in enumerate(k)]
    rows = product(range(s.images), range(-(-H // s.stride)), columns, range(s.heads))
    for index, (image, row, column, head) in enumerate(rows):
        at = index * d  # q is (images, rows, columns, heads, d)
        top, left = s.stride * row, s.stride * column
        ys = [image * H + _mirror(top + s.dilation * i, H) for i in (-1, 0, 1)]
        xs = [_mirror(left + s.dilation * i, W) for i in (-1, 0, 1)]
        seen = [(i * W + j) * C + head * d for i in ys for j in xs]
        query, grad = q[at : at + d], dy[at : at + d]
        weights = _softmax([_SCALE * _dot(query, keys[j : j + d]) for j in seen])
        products = [_dot(grad, v[j : j + d]) for j in seen]
        mean = _dot(weights, products)
        for j, weight, value in zip(seen, weights, products, strict=True):
            change = _SCALE * weight * (value - mean)
            for c in range(d):
                y[at + c] += weight * v[j + c]
                dq[at + c] += change * keys[j + c]
                dk[j + c] += change * query[c]
                dv[j + c] += weight * grad[c]
    return [y, dq, dk, dv]


def _mirror(x: int, size: int) -> int:
    period = 2 * (size - 1) or 1
    return min(x % period, -x % period)


_CHECKS: tuple[Callable[[Kernels], Iterator[Found]], ...] = (
    _check_layer_norm,
    _check_directions,
    _check_similarities,
    _check_scale,
    _check_heads,
    _check_sliding,
)
