"""Attention in windows: the public function."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convattn.checks import check_positive
from convattn.ops.attention_checks import check_heads, check_windows
from convattn.ops.old_dispatch import resolve
from convattn.ops.reference import attention as reference
from convattn.ops.windows.paths import attend_in_windows

SDPA_BACKENDS = ("sdpa", "reference")


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
