"""Sliding-window attention: the public function and its paths.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation. Maps are (B, C, H, W) with the N heads one after another in C.

| backend     | computes                                                                 |
|-------------|--------------------------------------------------------------------------|
| "native"    | on vectors of queries, in C: `convattn.ops.kernels.native`               |
| "strips"    | tiles of queries, a few images at a time (CPU)                           |
| "dense"     | all keys of the map, each counted as often as it is seen                 |
| "tiled"     | tiles of queries with a halo of keys, all at once                        |
| "triton"    | tiles of queries, on a GPU: `convattn.ops.kernels.triton`                |
| "reference" | the formula, with K^2 copies of what a window shows                      |
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.checks import check_odd, check_positive
from convattn.ops.attention_checks import answered, check_heads, check_position
from convattn.ops.dispatch import Case, Rule, choose, derivable, describe, resolve
from convattn.ops.kernels import triton as kernels
from convattn.ops.kernels.native import sliding as native
from convattn.ops.kernels.native.library import available
from convattn.ops.reference import attention as reference
from convattn.ops.sliding.dense import attend_dense, attend_tiled
from convattn.ops.sliding.strips import attend_in_strips

SLIDING_BACKENDS = ("native", "strips", "tiled", "dense", "triton", "reference")


def _is_small(case: Case) -> bool:
    """Whether the map has no more pixels than a tile with its halo: 18 x 18 for 7 x 7 windows."""
    return case.height * case.width <= (2 * case.window + 4) ** 2


def _is_tiny(case: Case) -> bool:
    """Whether vectors of queries would be half empty: up to 9 x 9 for 7 x 7 windows."""
    slow = case.grad and case.dtype == torch.bfloat16
    return case.height * case.width <= (case.window + 2) ** 2 and not slow


def _has_strips(case: Case) -> bool:
    return case.device in ("cpu", "meta") and not (case.exporting or case.transformed)


def _has_native(case: Case) -> bool:
    """Whether the kernels compute such maps, and the machine has a compiler for them."""
    if case.device != "cpu" or case.exporting or case.transformed:
        return False
    return native.takes(case.dtype, case.window, case.dilation) and available()


_ON_CPU = {"native": native.attend_natively, "strips": attend_in_strips}


# Measured by ``python -m benchmarks.ops`` on two CPU cores, float32, batch 8, window 7.
SLIDING_RULES: tuple[Rule, ...] = (
    ("dense", _is_tiny, "two cores, (512, 7x7): 0.47 ms, native 0.71"),
    ("native", _has_native, "two cores, (64, 56x56): 3.7 ms, strips 11; with gradients 16, 42"),
    ("dense", _is_small, "two cores, (256, 14x14): 1.8 ms, strips 3.0, tiled 4.0"),
    ("strips", _has_strips, "two cores, (64, 56x56): 14 ms, tiled 21; with gradients 11 MiB, 91"),
    ("tiled", lambda case: True, "PyTorch's own operators alone; triton not measured on a GPU"),
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
        q: queries (B, C, H, W), of which those at ``[::s, ::s]`` are answered, or those alone:
            (B, C, ceil(H / s), ceil(W / s)).
        k: keys (B, C, H, W).
        v: values, shaped like ``k``.
        num_heads: N; head n has channels n d to (n + 1) d.
        window_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.
        position: p, a map (B or 1, d, H, W) that all heads share; None for none.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: "auto", "native", "strips", "tiled", "dense", "triton" or "reference". On a CPU
            "auto" takes "native" for float32 and bfloat16 where a C compiler is found and windows
            have up to 32 pixels, at most 40 from the first to the last; else "strips"; for small
            maps "dense": of 7 x 7 windows up to 9 x 9, without "native" up to 18 x 18. Elsewhere,
            in exported models and under ``torch.func`` it takes "dense" or "tiled".

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), after SASA (arXiv 1906.05909). The published code copies keys
    and values K^2 times, ignores the dilation and needs maps larger than K / 2: here a reflection
    that is longer than the map reflects again. The fast paths use that softmax cancels ``q_i .
    p_i``: the keys are ``k - p``.
    """
    check_odd("window_size", window_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_heads(q, k, v, num_heads)
    q = answered(q, k, stride)
    check_position(position, k, num_heads)
    chosen = resolve(backend, SLIDING_BACKENDS)
    if chosen == "auto":
        given = (k, q, v) if position is None else (k, q, v, position)
        case = describe(*given, stride=stride, window=window_size, dilation=dilation, dtype=q.dtype)
        chosen = choose(SLIDING_RULES, case)
    options = {"window_size": window_size, "stride": stride, "dilation": dilation}
    if chosen == "reference":
        return reference.sliding_window_attention(
            q, k, v, num_heads=num_heads, position=position, scale=scale, **options
        )
    if chosen in _ON_CPU:
        attend = _ON_CPU[chosen]
        return attend(q, k, v, position, num_heads=num_heads, scale=scale, **options)
    if position is not None:
        k = (k.unflatten(1, (num_heads, -1)) - position[:, None]).flatten(1, 2)
    if chosen == "triton":
        return kernels.attend_sliding(q, k, v, num_heads=num_heads, scale=scale, **options)
    attend = attend_dense if chosen == "dense" else attend_tiled
    with derivable():
        return attend(q, k, v, num_heads=num_heads, scale=scale, **options)
