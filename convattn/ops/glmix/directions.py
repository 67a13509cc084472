"""Unit vectors, whose products are the cosines of GLMix.

A vector with a norm of `MIN_NORM` or less has no direction: its unit vector is set to 0.

| path        | computes                                                             |
|-------------|----------------------------------------------------------------------|
| "native"    | slots, in one pass, without gradients: `convattn.ops.kernels.native` |
| "reference" | slots, by PyTorch's operators                                        |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops.dispatch import Operator, Path
from convattn.ops.glmix.calls import ScaledCall
from convattn.ops.glmix.precision import wide_dtype
from convattn.ops.kernels.native import conditions, rows
from convattn.ops.reference.glmix import MIN_NORM


@dataclass
class DirectionsCall(ScaledCall):
    """Arguments of `scaled_directions`."""

    slots: Tensor
    scale: Tensor | float


def directions(x: Tensor) -> Tensor:
    """Return unit vectors along the last dimension; 0 for vectors without a direction."""
    # Squares overflow in half precision, so that the norm is computed in float32 or float64.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_dtype(x))
    inverse = (norm > MIN_NORM) / norm.clamp_min(MIN_NORM)
    return (x * inverse).to(x.dtype)


def inverse_length(u: Tensor) -> Tensor:
    """Return ``1 / |u|`` (B, P) in float32 or float64; 0 for a vector without a direction."""
    length = torch.linalg.vector_norm(u, dim=-1, dtype=wide_dtype(u))
    return torch.threshold_(length, MIN_NORM, torch.inf).reciprocal_()


def _scaled(slots: Tensor, *, scale: Tensor | float) -> Tensor:
    return scale * directions(slots)


def _scaled_natively(slots: Tensor, *, scale: Tensor | float) -> Tensor:
    return rows.directions(slots, MIN_NORM, float(scale))


DIRECTIONS: Operator[DirectionsCall] = Operator(
    "scaled_directions",
    Path("reference", _scaled, "PyTorch's operators"),
    Path(
        "native",
        _scaled_natively,
        "one core, (8, 64, 256): 0.03 ms, PyTorch's operators 0.06; bfloat16 0.05, 0.14",
        conditions.refuses,
        prefers=lambda call: not call.compiling,
    ),
)


def scaled_directions(slots: Tensor, scale: Tensor | float) -> Tensor:
    """Return ``scale * slots / |slots|`` (B, M, C), whose products with unit pixels are logits.

    Args:
        slots: (B, M, C).
        scale: inverse temperature, a number or a tensor of shape (1,).
    """
    keys: Tensor = DIRECTIONS(DirectionsCall(slots, scale))
    return keys
