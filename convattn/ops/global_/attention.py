"""Attention from every pixel to every pixel: the public function and its paths.

B batch, C channels, N heads of d = C / N channels, H W size of the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from convattn.ops.attention_checks import check_heads
from convattn.ops.dispatch import Call, Operator, Path, derivable
from convattn.ops.layout import to_heads, to_map
from convattn.ops.reference import attention as reference


@dataclass
class GlobalCall(Call):
    """Arguments of `global_attention`, checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    num_heads: int
    scale: float | None


def _attend(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float | None) -> Tensor:
    H, W = q.shape[2:]
    q, k, v = (to_heads(x, num_heads) for x in (q, k, v))
    with derivable():
        return to_map(F.scaled_dot_product_attention(q, k, v, scale=scale), H, W)


GLOBAL: Operator[GlobalCall] = Operator(
    "global_attention",
    Path("reference", reference.global_attention, "the formula"),
    Path("sdpa", _attend, "scaled_dot_product_attention stores no logits"),
)


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

    ``y_i = sum_j softmax_j(scale * q_i . k_j) v_j``, j over all pixels

    Args:
        q: queries (B, C, H, W).
        k: keys (B, C, h, w) of any size; spatial-reduction attention has a reduced map of keys.
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
    2102.12122). ``torch.func`` can compute every derivative. A second derivative by ``backward``
    needs the context ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around the call, since
    PyTorch's fused kernels have no second derivative.
    """
    check_heads(q, k, v, num_heads)
    return GLOBAL(GlobalCall(q, k, v, num_heads, scale), backend)
