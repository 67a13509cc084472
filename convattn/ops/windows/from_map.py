"""Attention from the map that q, k and v are projected from: fewer copies than from q, k and v.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_divisible, check_positive
from convattn.ops.acmix.checks import check_projections
from convattn.ops.attention_checks import check_windows
from convattn.ops.old_dispatch import resolve
from convattn.ops.windows.attention import SDPA_BACKENDS, window_attention
from convattn.ops.windows.paths import attend_map_in_windows


def map_window_attention(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    num_heads: int,
    window_size: int = 7,
    shift: int | tuple[int, int] = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute ``window_attention`` from the map that q, k and v are 1x1 convolutions of.

    Args:
        x: the map (B, C_in, H, W), rolled by ``-shift``.
        weights: of the convolutions that make q, k and v, (C, C_in, 1, 1) each.
        biases: of the same, (C,) or None each.
        num_heads: N.
        window_size: K.
        shift: by how much the map was rolled, or (rows, columns).
        bias: added to the logits (N, K^2, K^2); None for none.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: "auto", "sdpa" or "reference", as in ``window_attention``.

    Returns:
        A map (B, C, H, W), still rolled.

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.
    """
    check_projections(x, weights, biases)
    if not weights[0].shape == weights[1].shape == weights[2].shape:
        shapes = ", ".join(str(tuple(w.shape)) for w in weights)
        raise ValueError(f"q, k and v must have as many channels, got weights {shapes}")
    options: dict[str, Any] = {"num_heads": num_heads, "window_size": window_size}
    options |= {"bias": bias, "scale": scale}
    chosen = resolve(backend, SDPA_BACKENDS)
    if chosen == "reference":
        q, k, v = (F.conv2d(x, w, b) for w, b in zip(weights, biases, strict=True))
        return window_attention(q, k, v, shift=shift, backend="reference", **options)
    check_positive("window_size", window_size)
    check_divisible("channels of q", weights[0].shape[0], "num_heads", num_heads)
    shift = check_windows(num_heads, window_size, shift, bias)
    weight, offset = _joined(weights, biases)
    return attend_map_in_windows(x, weight, offset, shift=shift, backend=chosen, **options)


def _joined(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Return several projections as one."""
    if all(b is None for b in biases):
        return torch.cat(list(weights)), None
    filled = (
        w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)
    )
    return torch.cat(list(weights)), torch.cat(list(filled))
