"""Experimental Triton kernels for GPUs, by ``backend="triton"``. They were not measured on a GPU.

Triton is imported at the first call of a kernel.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window, s stride,
r dilation, L distance, M slots. Sums are computed in float32 or float64. Gradients are
deterministic: no kernel uses atomic additions. There are no second derivatives.

Without a GPU, ``TRITON_INTERPRET=1 python ...`` runs the kernels in Triton's interpreter, slowly.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from convattn.ops.dispatch import Call

AVAILABLE = importlib.util.find_spec("triton") is not None


def attend_sliding(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    window_size: int,
    stride: int,
    dilation: int,
    scale: float | None,
) -> Tensor:
    """Compute ``ops.sliding_window_attention``; ``q`` has only the queries of the stride."""
    from convattn.ops.kernels.triton.neighbours import attend_neighbours

    if scale is None:
        scale = (q.shape[1] // num_heads) ** -0.5
    q, k, v = _alike(q, k, v)
    return attend_neighbours(q, k, v, num_heads, window_size, stride, dilation, scale, True)[0]


def attend_shifted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    kernel_size: int,
    distance: int,
    stride: int,
    scale: float,
) -> Tensor:
    """Compute ``ops.pixel_shift_attention`` on checked arguments."""
    from convattn.ops.kernels.triton.neighbours import attend_neighbours

    q, k, v = _alike(q[:, :, ::stride, ::stride], k, v)
    return attend_neighbours(q, k, v, num_heads, kernel_size, stride, distance, scale, False)[0]


def cluster(slots: Tensor, u: Tensor, scale: Tensor | float) -> Tensor:
    """Compute ``ops.soft_clustering`` on checked arguments: slots (B, M, C)."""
    from convattn.ops.kernels.triton.cosine import attend_cosine

    slots, pixels = _alike(slots, u.flatten(2).transpose(1, 2))
    return attend_cosine(slots, pixels, None, _number(scale, pixels))[0]


def disperse(prototypes: Tensor, slots: Tensor, u: Tensor, scale: Tensor | float) -> Tensor:
    """Compute ``ops.dispatch`` on checked arguments: prototypes and slots (B, M, C)."""
    from convattn.ops.kernels.triton.cosine import attend_cosine

    slots, prototypes, pixels = _alike(slots, prototypes, u.flatten(2).transpose(1, 2))
    mixed = attend_cosine(pixels, prototypes, slots, _number(scale, pixels))[0]
    return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])


def refuses(call: Call) -> str | None:
    """Return why no Triton program can compute a call; None if one can."""
    if not AVAILABLE:
        return (
            "it needs the package triton, which comes with PyTorch for GPUs (`convattn doctor` "
            "shows what is installed)"
        )
    if call.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            "it needs tensors on a GPU, got cpu (TRITON_INTERPRET=1, set before Python starts, "
            "computes the same there, slowly)"
        )
    if call.transformed:
        return "it has no rule for torch.func or forward-mode differentiation"
    return None


def _alike(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors to one dtype: the dtype of autocast if autocast is enabled."""
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    kind = tensors[0].device.type
    if kind != "meta" and dtype != torch.float64 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return [t.to(dtype) for t in tensors]


def _number(scale: Tensor | float, like: Tensor) -> Tensor:
    """Return the scale as a tensor (1,) in the dtype of sums."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(scale, Tensor):
        return scale.reshape(1).to(like.device, dtype)
    return like.new_full((1,), scale, dtype=dtype)
