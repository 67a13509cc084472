"""Sliding-window attention: the public function and its paths.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation. Maps are (B, C, H, W) with the channels of each head adjacent in C.

| path        | computes                                                                 |
|-------------|--------------------------------------------------------------------------|
| "native"    | vectors of queries, in C: `convattn.ops.kernels.native`                  |
| "bands"     | some rows of queries at a time, and the rows of keys in their windows    |
| "dense"     | all keys of the map, by a mask with the logs of their counts             |
| "strips"    | tiles of queries, a few images at a time (CPU)                           |
| "tiled"     | tiles of queries with a halo of keys, all at once                        |
| "triton"    | tiles of queries, on a GPU: `convattn.ops.kernels.triton`                |
| "reference" | the formula, with K^2 copies of keys and values                          |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convattn.checks import check_odd, check_positive
from convattn.ops import tuned
from convattn.ops.attention_checks import check_heads, check_position, queries_of_stride
from convattn.ops.dispatch import Call, Operator, Path, derivable
from convattn.ops.kernels import triton
from convattn.ops.kernels.native import sliding as native
from convattn.ops.reference import attention as reference
from convattn.ops.sliding.dense import attend_dense, attend_in_bands
from convattn.ops.sliding.strips import attend_in_strips
from convattn.ops.sliding.tiled import attend_tiled


@dataclass
class SlidingCall(Call):
    """Arguments of `sliding_window_attention`, checked; ``q`` has the queries of the stride."""

    q: Tensor
    k: Tensor
    v: Tensor
    position: Tensor | None
    num_heads: int
    window_size: int
    stride: int
    dilation: int
    scale: float | None

    @property
    def pixels(self) -> int:
        """The number of pixels of the map of keys; a symbol if sizes are symbols."""
        return self.k.shape[2] * self.k.shape[3]

    @property
    def reach(self) -> int:
        """The distance from the centre of a window to its border, in pixels."""
        return self.dilation * (self.window_size // 2)


def _is_small(call: SlidingCall) -> bool:
    """Whether the map has no more pixels than a tile with its halo: 18 x 18 for 7 x 7 windows."""
    return call.pixels <= (2 * call.window_size + tuned.DENSE_MARGIN) ** 2


def _fills_vectors(call: SlidingCall) -> bool:
    """Whether queries fill the vectors of "native": from 10 x 10 pixels for 7 x 7 windows."""
    if call.device != "cpu":
        return False
    if call.grad and call.dtype == torch.bfloat16:
        return True
    return call.pixels > (call.window_size + tuned.NATIVE_MARGIN) ** 2


def _prefers_bands(call: SlidingCall) -> bool:
    """Whether the windows of a band contain only a part of the rows of a small map on a CPU."""
    if call.device != "cpu" or call.compiling or call.grad or not _is_small(call):
        return False
    rows = 2 * call.reach + 1 + call.stride
    return rows <= tuned.BAND_SHARE * call.k.shape[2]


def _bands_refuse(call: SlidingCall) -> str | None:
    return "its bands need fixed sizes, and sizes are symbols" if call.compiling else None


def _strips_refuse(call: SlidingCall) -> str | None:
    if not call.on_cpu and call.device != "meta":
        return f"it computes tensors on the CPU, got {call.devices}"
    if call.exporting:
        return "an exported program has PyTorch's operators only"
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    return None


def _native_refuses(call: SlidingCall) -> str | None:
    return _strips_refuse(call) or native.refuses(call.dtype, call.window_size, call.dilation)


def _on_moved_keys(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Subtract the positions from the keys of a path that has none.

    This is exact: ``q_i . p_i`` cancels in the softmax.
    """

    def run(
        q: Tensor, k: Tensor, v: Tensor, position: Tensor | None, *, num_heads: int, **options: Any
    ) -> Tensor:
        if position is not None:
            k = (k.unflatten(1, (num_heads, -1)) - position[:, None]).flatten(1, 2)
        with derivable():
            return attend(q, k, v, num_heads=num_heads, **options)

    return run


# Measured by ``python -m benchmarks.ops`` on two CPU cores, float32, batch 8, window 7.
SLIDING: Operator[SlidingCall] = Operator(
    "sliding_window_attention",
    Path("reference", reference.sliding_window_attention, "the formula"),
    Path(
        "native",
        native.attend_natively,
        "two cores, (64, 56x56): 3.7 ms, strips 11; with gradients 16, strips 42",
        _native_refuses,
        _fills_vectors,
    ),
    Path(
        "bands",
        _on_moved_keys(attend_in_bands),
        "two cores, (256, 14x14): 2.0 ms, dense 2.8",
        _bands_refuse,
        _prefers_bands,
    ),
    Path(
        "dense",
        _on_moved_keys(attend_dense),
        "two cores, (512, 7x7): 0.47 ms, native 0.71; (256, 14x14): 1.8 ms in bands, strips 3.0, "
        "tiled 4.0",
        prefers=_is_small,
    ),
    Path(
        "strips",
        attend_in_strips,
        "two cores, (64, 56x56): 14 ms, tiled 21; with gradients 11 MiB, tiled 91",
        _strips_refuse,
    ),
    Path("tiled", _on_moved_keys(attend_tiled), "it has PyTorch's operators only"),
    Path(
        "triton",
        _on_moved_keys(triton.attend_sliding),
        "not measured on a GPU",
        triton.refuses,
        prefers=lambda call: False,
    ),
)


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
    position: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Let every s-th pixel attend to the K x K pixels around it, the map mirrored at its borders.

    ``y_i = sum_j softmax_j(scale * q_i . (k_j + p_i - p_j)) v_j``, j in the K x K window around i

    Args:
        q: queries (B, C, H, W), of which ``q[:, :, ::s, ::s]`` is used, or only the queries that
            are used: (B, C, ceil(H / s), ceil(W / s)).
        k: keys (B, C, H, W).
        v: values, shaped like ``k``.
        num_heads: N; head n has channels n d to (n + 1) d.
        window_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.
        position: p, a map (B or 1, d, H, W) that all heads share; None for no positions.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: "auto", "native", "bands", "dense", "strips", "tiled", "triton" or "reference". On
            a CPU "auto" takes "native" for float32 and bfloat16 if a C compiler is found and a
            window has up to 32 pixels, at most 40 from the first to the last; else "strips". For
            small maps "auto" takes "dense": for 7 x 7 windows up to 9 x 9 pixels, without "native"
            up to 18 x 18. On other devices, in exported models and under ``torch.func`` it takes
            "dense" or "tiled".

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), after SASA (arXiv 1906.05909). The published code copies keys
    and values K^2 times, ignores the dilation and needs maps larger than K / 2. Here smaller maps
    are mirrored repeatedly. ``q_i . p_i`` cancels in the softmax, so that the fast paths take ``k -
    p`` as the keys.
    """
    check_odd("window_size", window_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_heads(q, k, v, num_heads)
    q = queries_of_stride(q, k, stride)
    check_position(position, k, num_heads)
    call = SlidingCall(q, k, v, position, num_heads, window_size, stride, dilation, scale)
    return SLIDING(call, backend)
