"""Layer norm, and GLMix's directions, similarities and scales of rows, by `rows.c`.

Each function calls an operator of PyTorch for a CPU, without a gradient formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops.kernels.native.library import is_half, kernels, threads
from convattn.ops.registration import check_no_gradient, define

MOST_WIDTH = 1 << 13  # maximum channels of a row in layer norm: a few rows are on the stack


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + bias`` of each row (..., C)."""
    check_no_gradient("layer_norm", x, weight, bias)
    y: Tensor = _layer_norm(x, weight, bias, eps)
    return y


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``x + branch`` and the layer norm of the rounded sum."""
    check_no_gradient("add_layer_norm", x, branch, weight, bias)
    total, y = _add_layer_norm(x, branch, weight, bias, eps)
    return total, y


def directions(x: Tensor, min_norm: float, scale: float) -> Tensor:
    """Return ``scale x / |x|`` of the rows (..., C); 0 if |x| is not above ``min_norm``."""
    check_no_gradient("directions", x)
    y: Tensor = _directions(x, min_norm, scale)
    return y


def similarities_(products: Tensor, u: Tensor, min_norm: float) -> tuple[Tensor, Tensor]:
    """Replace products of pixels and slots by ``exp(products / |u|)``; return their sums.

    Args:
        products: (B, P, M), contiguous.
        u: pixels (B, P, C).
        min_norm: up to this norm a pixel has no direction, and 1 / |u| is replaced by 0.

    Returns:
        Inverse sums over slots (B, P), and sums over pixels (B, M), both float32.
    """
    check_no_gradient("similarities_", products, u)
    inverse_sums, totals = _similarities(products, u, min_norm)
    return inverse_sums, totals


def scale_(x: Tensor, scales: Tensor) -> Tensor:
    """Multiply the rows (..., n) of a contiguous tensor by float32 numbers (...), in place."""
    check_no_gradient("scale_rows_", x, scales)
    _scale_rows(x, scales)
    return x


def _compute_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    _normalise(x, None, None, weight, bias, y, eps)
    return y


def _compute_add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x, branch = x.contiguous(), branch.contiguous()
    total, y = torch.empty_like(x), torch.empty_like(x)
    _normalise(x, branch, total, weight.contiguous(), bias.contiguous(), y, eps)
    return total, y


def _normalise(
    x: Tensor,
    branch: Tensor | None,
    total: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    eps: float,
) -> None:
    width = x.shape[-1]
    if not len(weight) == len(bias) == width <= MOST_WIDTH:
        raise ValueError(
            f"rows must have at most {MOST_WIDTH} channels, and a weight and a bias for each, got "
            f"{width} channels, {len(weight)} weights and {len(bias)} biases"
        )
    half = is_half(x, weight, bias) if branch is None else is_half(x, branch, weight, bias)
    kernels().rows_layer_norm(
        x.data_ptr(),
        0 if branch is None else branch.data_ptr(),
        0 if total is None else total.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
        x.numel() // width if width else 0,
        width,
        eps,
        half,
        threads(),
    )


def _compute_directions(x: Tensor, min_norm: float, scale: float) -> Tensor:
    x = x.contiguous()
    y, width = torch.empty_like(x), x.shape[-1]
    if x.numel():
        sizes = x.numel() // width, width
        how = is_half(x), threads()
        kernels().rows_directions(x.data_ptr(), y.data_ptr(), *sizes, min_norm, scale, *how)
    return y


def _compute_similarities(products: Tensor, u: Tensor, min_norm: float) -> tuple[Tensor, Tensor]:
    images, pixels, slots = products.shape
    _check_in_place(products)
    if u.stride()[1:] != (u.shape[2], 1):
        u = u.contiguous()
    half, native = is_half(products, u), kernels()
    inverse_sums, totals = _empty_sums(products)
    workspace = totals.new_empty(images * native.rows_workspace(pixels, slots))
    native.rows_similarities(
        products.data_ptr(),
        u.data_ptr(),
        inverse_sums.data_ptr(),
        totals.data_ptr(),
        workspace.data_ptr(),
        images,
        pixels,
        slots,
        u.shape[2],
        u.stride(0),
        min_norm,
        half,
        threads(),
    )
    return inverse_sums, totals


def _compute_scale_rows(x: Tensor, scales: Tensor) -> None:
    _check_in_place(x)
    scales, width = scales.contiguous(), x.shape[-1]
    if scales.dtype != torch.float32 or scales.shape != x.shape[:-1]:
        raise ValueError(
            f"scales must be float32 {tuple(x.shape[:-1])}, got {scales.dtype} "
            f"{tuple(scales.shape)}"
        )
    how = is_half(x), threads()
    if x.numel():
        kernels().rows_scale(x.data_ptr(), scales.data_ptr(), x.numel() // width, width, *how)


def _check_in_place(x: Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError(f"rows must be contiguous, got strides {x.stride()}")
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)


def _empty_sums(products: Tensor) -> tuple[Tensor, Tensor]:
    images, pixels, slots = products.shape
    inverse_sums = products.new_empty(images, pixels, dtype=torch.float32)
    return inverse_sums, products.new_empty(images, slots, dtype=torch.float32)


def _empty(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_layer_norm = define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
    _compute_layer_norm,
    _empty,
)
_add_layer_norm = define(
    "add_layer_norm(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps) "
    "-> (Tensor, Tensor)",
    _compute_add_layer_norm,
    lambda x, *_: (_empty(x), _empty(x)),
)
_directions = define(
    "directions(Tensor x, float min_norm, float scale) -> Tensor", _compute_directions, _empty
)
_similarities = define(
    "similarities_(Tensor(a!) products, Tensor u, float min_norm) -> (Tensor, Tensor)",
    _compute_similarities,
    lambda products, *_: _empty_sums(products),
)
_scale_rows = define(
    "scale_rows_(Tensor(a!) x, Tensor scales) -> ()", _compute_scale_rows, lambda *_: None
)
