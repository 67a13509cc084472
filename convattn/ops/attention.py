"""The attentions that ACmix takes: public functions, argument checks, choice of path.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation. Maps are (B, C, H, W) with the N heads one after another in C.

| backend     | computes                                                                 |
|-------------|--------------------------------------------------------------------------|
| "native"    | sliding window: on vectors of queries, in C: `ops.kernels.native`        |
| "strips"    | sliding window: tiles of queries, a few images at a time (CPU)           |
| "dense"     | sliding window: all keys of the map, each counted as often as it is seen |
| "tiled"     | sliding window: tiles of queries with a halo of keys, all at once        |
| "triton"    | sliding window: tiles of queries, on a GPU: `convattn.ops.kernels`       |
| "sdpa"      | windows, global: one call of ``scaled_dot_product_attention``            |
| "auto"      | `SLIDING_RULES`; windows: `_windows.py` has faster ones than "sdpa"      |
| "taps"      | patch-wise: one product for each of the K^2 places of a window           |
| "reference" | the formulas, with K^2 copies of what a window shows                     |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import kernels
from convattn.ops._attention_checks import (
    answered,
    check_heads,
    check_position,
    check_windows,
)
from convattn.ops._backend import Case, Rule, choose, derivable, describe, resolve
from convattn.ops._checks import (
    check_divisible,
    check_map,
    check_odd,
    check_positive,
    check_tensor,
)
from convattn.ops._reflection import ceil_divide, padded_positions, window_positions
from convattn.ops._sliding_strips import attend_in_strips
from convattn.ops._sliding_window import attend_dense, attend_tiled
from convattn.ops._tokens import to_heads, to_map
from convattn.ops._windows import attend_in_windows
from convattn.ops.kernels.native import sliding as native
from convattn.ops.kernels.native.library import available
from convattn.ops.reference import attention as reference

SLIDING_BACKENDS = ("native", "strips", "tiled", "dense", "triton", "reference")
SDPA_BACKENDS = ("sdpa", "reference")
PATCH_BACKENDS = ("taps", "reference")


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


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int = 7,
    shift: int | tuple[int, int] = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Let every pixel attend to the K x K window of the map's grid of windows that it lies in.

    ``y_i = sum_j softmax_j(scale * q_i . k_j + bias_ij) v_j``, j in the window of i

    Args:
        q: queries (B, C, H, W). For shifted windows the caller has rolled the map by ``-shift``.
        k: keys, shaped like ``q``.
        v: values, shaped like ``q``.
        num_heads: N; head n has channels n d to (n + 1) d.
        window_size: K. A map that K does not divide is padded; nothing attends to padding.
        shift: by how much the map was rolled, or (rows, columns). Pixels that were rolled around
            the border do not attend to those that were not; they end the last window, padding
            comes before them.
        bias: added to the logits (N, K^2, K^2), query by key; None for none.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: "auto", "sdpa" or "reference". "auto" takes "sdpa" where gradients are wanted, else
            on a CPU also kernels in C, or products.

    Returns:
        A map (B, C, H, W), still rolled.

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), "Generalization to Other Attention Modes", after Swin (arXiv
    2103.14030), equation 4 and figure 4. The published code needs maps that the window divides.
    """
    check_positive("window_size", window_size)
    check_heads(q, k, v, num_heads)
    if k.shape != q.shape:
        raise ValueError(f"k must be shaped like q, got {tuple(k.shape)} and {tuple(q.shape)}")
    shift = check_windows(num_heads, window_size, shift, bias)
    chosen = resolve(backend, SDPA_BACKENDS)
    options: dict[str, Any] = {"num_heads": num_heads, "window_size": window_size}
    options |= {"shift": shift, "bias": bias, "scale": scale}
    if chosen == "reference":
        return reference.window_attention(q, k, v, **options)
    return attend_in_windows(q, k, v, backend=chosen, **options)


def global_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Let every pixel attend to every pixel of the map of keys.

    ``y_i = sum_j softmax_j(scale * q_i . k_j) v_j``, j anywhere

    Args:
        q: queries (B, C, H, W).
        k: keys (B, C, h, w), on a map of any size: a reduced one is spatial-reduction attention.
        v: values, shaped like ``k``.
        num_heads: N; head n has channels n d to (n + 1) d.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: "auto", "sdpa" or "reference".

    Returns:
        A map (B, C, H, W).

    Raises:
        TypeError: maps that are not floating point.
        ValueError: shapes or a backend that do not fit.

    ACmix (arXiv 2111.14556), "Generalization to Other Attention Modes", after ViT and PVT (arXiv
    2102.12122). ``torch.func`` takes every derivative; ``backward`` through a gradient needs
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around the call, as PyTorch's kernels do.
    """
    check_heads(q, k, v, num_heads)
    if resolve(backend, SDPA_BACKENDS) == "reference":
        return reference.global_attention(q, k, v, num_heads=num_heads, scale=scale)
    H, W = q.shape[2:]
    q, k, v = (to_heads(x, num_heads) for x in (q, k, v))
    with derivable():
        return to_map(F.scaled_dot_product_attention(q, k, v, scale=scale), H, W)


def patchwise_aggregate(
    weights: Tensor,
    v: Tensor,
    *,
    kernel_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Sum the K x K pixels around every s-th one with weights of its own, the map mirrored.

    ``y[c, i] = sum_t weights[c mod M, t, i] v[c, i + t]``, t in the K x K window

    Args:
        weights: M weight maps (B, M, K^2, ceil(H / s), ceil(W / s)); M divides C.
        v: the map (B, C, H, W).
        kernel_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.
        backend: "auto", "taps" or "reference".

    Returns:
        A map (B, C, ceil(H / s), ceil(W / s)).

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    The aggregation of patch-wise SAN (arXiv 2004.13621), section 3.2, that ACmix takes as one of
    its attentions. Reflection longer than the map reflects again.
    """
    check_odd("kernel_size", kernel_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_map(v, "v")
    check_tensor("weights", weights)
    B, H, W = v.shape[0], *(ceil_divide(n, stride) for n in v.shape[2:])
    places = kernel_size**2
    if weights.dim() != 5 or (weights.shape[0], *weights.shape[2:]) != (B, places, H, W):
        raise ValueError(
            f"weights must have shape ({B}, M, {places}, {H}, {W}), got {tuple(weights.shape)}"
        )
    check_divisible("channels of v", v.shape[1], "weight maps", weights.shape[1])
    if resolve(backend, PATCH_BACKENDS) == "reference":
        return reference.patchwise_aggregate(
            weights, v, kernel_size=kernel_size, stride=stride, dilation=dilation
        )
    return _aggregate_taps(weights, v, kernel_size, stride, dilation)


def neighbourhoods(x: Tensor, *, kernel_size: int, stride: int = 1, dilation: int = 1) -> Tensor:
    """Copy the K x K pixels around every s-th one, the map mirrored at its borders.

    This is K^2 copies of the map: for narrow maps only.

    Args:
        x: the map (B, C, H, W).
        kernel_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.

    Returns:
        (B, C, K^2, ceil(H / s), ceil(W / s)).

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: a map of another rank, sizes that do not fit.
    """
    check_odd("kernel_size", kernel_size)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_map(x)
    rows, columns = (
        window_positions(
            size, window_size=kernel_size, stride=stride, dilation=dilation, device=x.device
        )
        for size in x.shape[2:]
    )
    x = x[:, :, rows][..., columns]
    return x.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)


def _aggregate_taps(
    weights: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Add one product per place in the window: views of the padded map, never copies."""
    reach = dilation * (kernel_size // 2)
    for dim in (2, 3):
        v = v.index_select(dim, padded_positions(v.shape[dim], reach, v.device))
    v = v.unflatten(1, (-1, weights.shape[1]))
    # Narrowed, not sliced: where sizes are symbols, a slice would be clamped to them K^2 times.
    height, width = (stride * (size - 1) + 1 for size in weights.shape[3:])
    out = v.new_zeros(())
    for t, weight in enumerate(weights.unbind(2)):
        top, left = dilation * (t // kernel_size), dilation * (t % kernel_size)
        seen = v.narrow(-2, top, height).narrow(-1, left, width)
        out = out + weight[:, None] * seen[..., ::stride, ::stride]
    return out.flatten(1, 2)
