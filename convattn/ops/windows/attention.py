"""Attention inside the windows of a grid: the public functions and their paths.

B batch, C channels, N heads of d = C / N channels, H W size of the map, K window. Maps are (B, C,
H, W) with the channels of each head adjacent in C.

| path        | computes                                                                        |
|-------------|---------------------------------------------------------------------------------|
| "native"    | in C, on the map without a copy by windows, without gradients                   |
| "products"  | a copy of the map by windows, products and a softmax                            |
| "sdpa"      | the same copy, ``scaled_dot_product_attention``                                 |
| "reference" | the formula, window by window                                                   |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_divisible, check_positive
from convattn.ops.attention_checks import check_heads, check_projections, check_windows
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels.native import conditions
from convattn.ops.kernels.native.heads import MOST_TOKENS
from convattn.ops.processor import multiplies
from convattn.ops.reference import attention as reference
from convattn.ops.windows.copied import (
    attend_by_products,
    attend_by_sdpa,
    in_copied_map,
    in_copied_windows,
)
from convattn.ops.windows.in_place import attend_in_place, attend_map_in_place


@dataclass
class WindowCall(Call):
    """Arguments of `window_attention`, checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    num_heads: int
    window_size: int
    shift: tuple[int, int]
    scale: float | None


@dataclass
class MapWindowCall(Call):
    """Arguments of `map_window_attention`, checked; its three projections are concatenated."""

    x: Tensor
    weight: Tensor
    offset: Tensor | None
    bias: Tensor | None
    num_heads: int
    window_size: int
    shift: tuple[int, int]
    scale: float | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of q, k and v, which autocast may choose."""
        return torch.get_autocast_dtype(self.device) if self.autocast else self.x.dtype


AnyCall = WindowCall | MapWindowCall


def _native_refuses(call: AnyCall) -> str | None:
    if call.window_size**2 > MOST_TOKENS:
        return f"it has windows of up to {MOST_TOKENS} pixels, got {call.window_size**2}"
    *maps, _ = call.tensors
    if any(t is not None and t.dtype != call.dtype for t in maps):
        return "the maps and the weights must have one type"
    return conditions.refuses(call)


def _prefers_products(call: AnyCall) -> bool:
    """Whether "products" is faster than "sdpa", or a transform needs derivatives sdpa lacks."""
    if call.transformed:
        return True
    if call.device != "cpu" or call.dtype != torch.bfloat16 or call.grad or call.exporting:
        return False
    return multiplies(call.dtype)


def _not_compiling(call: AnyCall) -> bool:
    return not call.compiling


def _from_projections(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    *,
    num_heads: int,
    window_size: int,
    shift: tuple[int, int],
    scale: float | None,
) -> Tensor:
    q, k, v = F.conv2d(x, weight, offset).chunk(3, 1)
    return reference.window_attention(
        q, k, v, bias, num_heads=num_heads, window_size=window_size, shift=shift, scale=scale
    )


_NATIVE = (
    "two cores, shifted, with bias: bfloat16 (96, 56x56) 6.3 ms, on a copy 18, (384, 14x14) 2.7, "
    "3.5; float32 12, 19 and 4.9, 7.0"
)
_PRODUCTS = "the layer in bfloat16, 3 heads: (96, 56x56) 18 ms, sdpa 26; (192, 28x28) 10, sdpa 12"
_SDPA = "it stores no logits for a gradient; float32 (96, 56x56) 26 ms, products 51"

WINDOWS: Operator[WindowCall] = Operator(
    "window_attention",
    Path("reference", reference.window_attention, "the formula"),
    Path("native", attend_in_place, _NATIVE, _native_refuses, _not_compiling),
    Path("products", in_copied_windows(attend_by_products), _PRODUCTS, prefers=_prefers_products),
    Path("sdpa", in_copied_windows(attend_by_sdpa), _SDPA),
)
MAP_WINDOWS: Operator[MapWindowCall] = Operator(
    "map_window_attention",
    Path("reference", _from_projections, "the formula"),
    Path("native", attend_map_in_place, _NATIVE, _native_refuses, _not_compiling),
    Path("products", in_copied_map(attend_by_products), _PRODUCTS, prefers=_prefers_products),
    Path("sdpa", in_copied_map(attend_by_sdpa), _SDPA),
)


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
    """Let every pixel attend to the pixels of its K x K window in a grid of windows.

    ``y_i = sum_j softmax_j(scale * q_i . k_j + bias_ij) v_j``, j in the window of i

    Args:
        q: queries (B, C, H, W). For shifted windows the caller has rolled the map by ``-shift``.
        k: keys, shaped like ``q``.
        v: values, shaped like ``q``.
        num_heads: N; head n has channels n d to (n + 1) d.
        window_size: K. A map that K does not divide is padded; padding is masked.
        shift: the number of pixels by which the map was rolled, or (rows, columns). Pixels that
            were rolled around the border and pixels that were not do not attend to each other. The
            rolled pixels are at the end of the last window, after the padding.
        bias: added to the logits (N, K^2, K^2), query by key; None for no bias.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: "auto", "native", "products", "sdpa" or "reference". "auto" takes "sdpa" if a
            gradient is required; otherwise it may take "native" or "products" on a CPU.

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
    call = WindowCall(q, k, v, bias, num_heads, window_size, shift, scale)
    return WINDOWS(call, backend)


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
    """Compute 1x1 convolutions to q, k and v, then ``window_attention``.

    Args:
        x: the map (B, C_in, H, W), rolled by ``-shift``.
        weights: weights of the convolutions to q, k and v, (C, C_in, 1, 1) each.
        biases: biases of these convolutions, (C,) or None each.
        num_heads: N.
        window_size: K.
        shift: the number of pixels by which the map was rolled, or (rows, columns).
        bias: added to the logits (N, K^2, K^2); None for no bias.
        scale: factor of the logits; None for 1 / sqrt(d).
        backend: as in ``window_attention``.

    Returns:
        A map (B, C, H, W), still rolled.

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.
    """
    check_projections(x, weights, biases)
    if not weights[0].shape == weights[1].shape == weights[2].shape:
        shapes = ", ".join(str(tuple(w.shape)) for w in weights)
        raise ValueError(f"q, k and v must have equally many channels, got weights {shapes}")
    check_positive("window_size", window_size)
    check_divisible("channels of q", weights[0].shape[0], "num_heads", num_heads)
    shift = check_windows(num_heads, window_size, shift, bias)
    weight, offset = _joined(weights, biases)
    call = MapWindowCall(x, weight, offset, bias, num_heads, window_size, shift, scale)
    return MAP_WINDOWS(call, backend)


def _joined(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Concatenate several projections to one."""
    if all(b is None for b in biases):
        return torch.cat(list(weights)), None
    filled = (
        w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)
    )
    return torch.cat(list(weights)), torch.cat(list(filled))
