"""The types in which GLMix computes.

Lengths and sums take float32 at least. Products of float16 are computed in float32: float16 has no
numbers that are large enough for products with long vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops.dispatch import autocasts


def result_type(x: Tensor) -> torch.dtype:
    """Return the type of ``x``, or that of autocast where it is on."""
    device = x.device.type
    if autocasts(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the type of ``x``, or float32 where that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def in_one_dtype(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Convert tensors to a type; those of float16 to float32."""
    if dtype == torch.float16:
        dtype = torch.float32
    return [t.to(dtype) for t in tensors]
