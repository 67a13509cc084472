"""The layer norm of each pixel's channels, alone or after a sum.

| path        | computes                                                 |
|-------------|----------------------------------------------------------|
| "native"    | in C, without gradients: `convattn.ops.kernels.native`   |
| "reference" | ``layer_norm`` of the map with channels last             |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels.native import conditions, rows


@dataclass
class LayerNormCall(Call):
    """Arguments of `layer_norm_2d`; ``pixels`` is (B, H, W, C)."""

    pixels: Tensor
    weight: Tensor | None
    bias: Tensor | None
    shape: Sequence[int]
    eps: float


@dataclass
class AddLayerNormCall(Call):
    """Arguments of `add_layer_norm_2d`; ``pixels`` and ``branch`` are (B, H, W, C)."""

    pixels: Tensor
    branch: Tensor
    weight: Tensor | None
    bias: Tensor | None
    shape: Sequence[int]
    eps: float


def _native_refuses(call: LayerNormCall | AddLayerNormCall) -> str | None:
    if call.weight is None or call.bias is None:
        return "it needs a weight and a bias"
    return conditions.refuses(call) or _rows_refuse(call, call.weight, call.bias)


def _rows_refuse(
    call: LayerNormCall | AddLayerNormCall, weight: Tensor, bias: Tensor
) -> str | None:
    """Return why the pixels are not contiguous rows that match weight and bias, or None."""
    pixels = call.pixels
    for tensor in call.tensors:
        if tensor.dtype != pixels.dtype or not tensor.is_contiguous():
            return "it needs maps with channels last, a contiguous weight and bias, and one type"
    if isinstance(call, AddLayerNormCall) and call.branch.shape != pixels.shape:
        return "both maps must have one shape"
    if not weight.shape == bias.shape == pixels.shape[3:] == tuple(call.shape):
        return "the weight and the bias must have a number for each channel"
    if len(weight) > rows.MOST_WIDTH:
        return f"it has scratch memory for {rows.MOST_WIDTH} channels, got {len(weight)}"
    return None if pixels.numel() > 0 else "the map has no pixel"


def _is_eager(call: Call) -> bool:
    return not call.compiling


def _norm(
    pixels: Tensor, weight: Tensor | None, bias: Tensor | None, *, shape: Sequence[int], eps: float
) -> Tensor:
    return F.layer_norm(pixels, shape, weight, bias, eps)


def _norm_natively(
    pixels: Tensor, weight: Tensor, bias: Tensor, *, shape: Sequence[int], eps: float
) -> Tensor:
    return rows.layer_norm(pixels, weight, bias, eps)


def _add_then_norm(
    pixels: Tensor,
    branch: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    shape: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    total = pixels + branch
    return total, LAYER_NORM(LayerNormCall(total, weight, bias, shape, eps))


def _add_and_norm_natively(
    pixels: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    shape: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    return rows.add_layer_norm(pixels, branch, weight, bias, eps)


# Measured on two CPU cores, batch 8.
LAYER_NORM: Operator[LayerNormCall] = Operator(
    "layer_norm_2d",
    Path("reference", _norm, "PyTorch's operator: gradients, other devices, types and layouts"),
    Path(
        "native",
        _norm_natively,
        "bfloat16 (64, 56x56): 0.16 ms, reference 0.63; (256, 14x14): 0.06, 0.08",
        _native_refuses,
        _is_eager,
    ),
)
ADD_LAYER_NORM: Operator[AddLayerNormCall] = Operator(
    "add_layer_norm_2d",
    Path("reference", _add_then_norm, "the sum, then the path of its layer norm"),
    Path(
        "native",
        _add_and_norm_natively,
        "one pass over both maps",
        _native_refuses,
        _is_eager,
    ),
)


def layer_norm_2d(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + bias`` over the channels of a map.

    ``x`` is (B, C, H, W), and ``shape`` is (C,), as for ``layer_norm``.
    """
    y: Tensor = LAYER_NORM(LayerNormCall(x.permute(0, 2, 3, 1), weight, bias, shape, eps))
    return y.permute(0, 3, 1, 2)


def add_layer_norm_2d(
    x: Tensor,
    branch: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return ``x + branch`` and its layer norm; see `layer_norm_2d`."""
    maps = x.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)
    total, y = ADD_LAYER_NORM(AddLayerNormCall(*maps, weight, bias, shape, eps))
    return total.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
