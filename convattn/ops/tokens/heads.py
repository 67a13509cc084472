"""Attention of few tokens with many narrow heads: GLMix's slots, the last stages of GLNet.

B batch, N tokens, C channels of h heads with d = C / h channels each.

| path       | computes                                                                |
|------------|-------------------------------------------------------------------------|
| "native"   | in C, without gradients: `convattn.ops.kernels.native`                  |
| "products" | batched products and a softmax; weights are stored where gradients are wanted |
| "sdpa"     | ``scaled_dot_product_attention``                                        |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native import heads as native
from convattn.ops.kernels.native import rows
from convattn.ops.old_dispatch import Case, Rule, choose, describe
from convattn.ops.processor import multiplies

TILE_LOGITS = 2**19  # images at a time, without gradients
MAX_STORED = 64  # tokens whose (N, N) weights are no larger than their queries, keys and values


def _products(case: Case) -> bool:
    return (
        case.device == "cpu"
        and case.dtype == torch.bfloat16
        and not case.exporting
        and not torch.compiler.is_compiling()
        and multiplies(case.dtype)
        and isinstance(case.height, int)
        and (not case.grad or case.height <= MAX_STORED)
    )


def _native(case: Case) -> bool:
    return rows.takes(case) and 0 < case.height <= native.MOST_TOKENS


# With AVX-512, heads of 32 channels; on one core where nothing else is said.
RULES: tuple[Rule, ...] = (
    ("products", lambda case: case.transformed, "sdpa has no jvp and no second derivative"),
    ("native", _native, "two cores, 196 tokens of 256 channels: 1.0 ms, products 1.3, sdpa 2.4"),
    ("products", _products, "bfloat16 against sdpa: 64 tokens 2x, backward 6x; 196 tokens 1.7x"),
    (
        "sdpa",
        lambda _: True,
        "float32: as fast, or faster; bfloat16 with AVX2 alone 8x; CUDA: not measured",
    ),
)


def attend_heads(qkv: Tensor, num_heads: int) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` of every head, for ``qkv`` (B, N, 3C): tokens (B, N, C)."""
    case = describe(qkv)
    path = choose(RULES, case)
    parts = qkv.unflatten(2, (3, num_heads, -1))  # an error where the heads do not fit
    if path == "native" and qkv.numel() > 0:
        return native.attend_tokens(qkv.contiguous(), num_heads)
    parts = parts.permute(2, 0, 3, 1, 4)
    if path == "sdpa":
        q, k, v = parts.unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    B = qkv.shape[0]
    q, k, v = parts.flatten(1, 2).unbind(0)  # dense, as the products take them
    scale = q.shape[2] ** -0.5
    if case.grad or case.transformed:
        answers = torch.bmm(torch.bmm(q * scale, k.mT).softmax(-1), v)
    else:
        answers = _without_gradients(q, k, v, scale, num_heads)
    return answers.unflatten(0, (B, num_heads)).transpose(1, 2).flatten(2)


def _without_gradients(q: Tensor, k: Tensor, v: Tensor, scale: float, num_heads: int) -> Tensor:
    size = num_heads * max(1, TILE_LOGITS // (num_heads * q.shape[1] ** 2))
    answers, room = torch.empty_like(q), q.new_empty(min(size, len(q)), q.shape[1], k.shape[1])
    for a, b, c, out in zip(*(x.split(size) for x in (q, k, v, answers)), strict=True):
        weights = room[: len(a)]
        torch.baddbmm(weights, a, b.mT, beta=0, alpha=scale, out=weights)
        torch.bmm(torch.softmax(weights, -1, out=weights), c, out=out)
    return answers
