"""The dtypes in which GLMix computes.

Norms and sums are computed in float32 or float64. Products of float16 tensors are computed in
float32: products with vectors of a large norm overflow in float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops.dispatch import autocasts


def result_type(x: Tensor) -> torch.dtype:
    """Return the dtype of ``x``, or the dtype of autocast if autocast is enabled."""
    device = x.device.type
    if autocasts(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of ``x``, or float32 if float32 is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def in_one_dtype(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Convert tensors to a dtype; float32 replaces float16."""
    if dtype == torch.float16:
        dtype = torch.float32
    return [t.to(dtype) for t in tensors]
