"""Attention of few tokens with many heads of few channels: GLMix's slots, GLNet's last stages.

B batch, N tokens, C channels of h heads with d = C / h channels each.

| path        | computes                                                                |
|-------------|-------------------------------------------------------------------------|
| "native"    | in C, without gradients: `convattn.ops.kernels.native`                  |
| "products"  | batched products and a softmax, some images at a time, without gradients |
| "sdpa"      | ``scaled_dot_product_attention``                                        |
| "reference" | batched products and a softmax; stores the weights for gradients        |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.kernels.native import conditions
from convattn.ops.kernels.native import heads as native
from convattn.ops.processor import multiplies


@dataclass
class HeadsCall(Call):
    """Arguments of `attend_heads`."""

    qkv: Tensor
    num_heads: int

    @property
    def tokens(self) -> int:
        """The number of tokens N; a symbol if sizes are symbols."""
        return self.qkv.shape[1]


def _native_refuses(call: HeadsCall) -> str | None:
    refusal = conditions.refuses(call)
    if refusal is not None:
        return refusal
    if call.tokens > native.MOST_TOKENS:
        return f"it supports up to {native.MOST_TOKENS} tokens, got {call.tokens}"
    return None if call.qkv.numel() > 0 else "there is no token"


def _prefers_products(call: HeadsCall) -> bool:
    """Whether the CPU has bfloat16 instructions: then "products" is faster than "sdpa"."""
    half = call.device == "cpu" and call.dtype == torch.bfloat16
    return half and not call.compiling and multiplies(call.dtype)


def _products_refuse(call: HeadsCall) -> str | None:
    if call.grad or call.transformed:
        return "it overwrites tensors that a gradient needs"
    if call.compiling or not call.plain:
        return "its tiles need fixed sizes, and tensors of PyTorch's own classes"
    return None if call.tokens > 0 else "there is no token"


def _sdpa_refuses(call: HeadsCall) -> str | None:
    if call.transformed:
        return "it has no forward-mode derivative and no second derivative"
    return None


def _prefers_sdpa(call: HeadsCall) -> bool:
    """Whether "sdpa" is at least as fast as "reference", which stores weights for gradients."""
    return not (_prefers_products(call) and call.grad and call.tokens <= tuned.MAX_STORED_TOKENS)


def _split(qkv: Tensor, num_heads: int) -> Tensor:
    """Return ``qkv`` as (3, B, h, N, d)."""
    return qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def _join(y: Tensor, num_heads: int) -> Tensor:
    """Return the heads (B h, N, d) as tokens (B, N, C)."""
    return y.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


def _attend_natively(qkv: Tensor, *, num_heads: int) -> Tensor:
    return native.attend_tokens(qkv.contiguous(), num_heads)


def _attend_in_tiles(qkv: Tensor, *, num_heads: int) -> Tensor:
    q, k, v = _split(qkv, num_heads).flatten(1, 2).unbind(0)
    scale, N = q.shape[2] ** -0.5, q.shape[1]
    size = num_heads * max(1, tuned.HEADS_TILE_LOGITS // (num_heads * N**2))
    y, workspace = torch.empty_like(q), q.new_empty(min(size, len(q)), N, N)
    for a, b, c, out in zip(*(x.split(size) for x in (q, k, v, y)), strict=True):
        weights = workspace[: len(a)]
        torch.baddbmm(weights, a, b.mT, beta=0, alpha=scale, out=weights)
        torch.bmm(torch.softmax(weights, -1, out=weights), c, out=out)
    return _join(y, num_heads)


def _attend_by_sdpa(qkv: Tensor, *, num_heads: int) -> Tensor:
    q, k, v = _split(qkv, num_heads).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _attend(qkv: Tensor, *, num_heads: int) -> Tensor:
    q, k, v = _split(qkv, num_heads).flatten(1, 2).unbind(0)
    weights = torch.bmm(q * q.shape[2] ** -0.5, k.mT).softmax(-1)
    return _join(torch.bmm(weights, v), num_heads)


# Measured with AVX-512 and heads of 32 channels, on one CPU core unless a path says otherwise.
HEADS: Operator[HeadsCall] = Operator(
    "attend_heads",
    Path("reference", _attend, "bfloat16, 64 tokens: backward pass 6x as fast as with sdpa"),
    Path(
        "native",
        _attend_natively,
        "two cores, 196 tokens of 256 channels: 1.0 ms, products 1.3, sdpa 2.4",
        _native_refuses,
        lambda call: not call.compiling,
    ),
    Path(
        "products",
        _attend_in_tiles,
        "bfloat16: 64 tokens 2x as fast as sdpa, 196 tokens 1.7x",
        _products_refuse,
        _prefers_products,
    ),
    Path(
        "sdpa",
        _attend_by_sdpa,
        "float32: as fast as products, or faster; bfloat16 without AVX-512: 8x; CUDA: not measured",
        _sdpa_refuses,
        _prefers_sdpa,
    ),
)


def attend_heads(qkv: Tensor, num_heads: int) -> Tensor:
    """Return ``softmax(q k^T / sqrt(d)) v`` of every head (B, N, C), for ``qkv`` (B, N, 3C)."""
    qkv.unflatten(2, (3, num_heads, -1))  # raises an error if num_heads does not divide C
    y: Tensor = HEADS(HeadsCall(qkv, num_heads))
    return y
