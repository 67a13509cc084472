"""Maps as the tokens of attention heads, and back.

B batch, C channels, N heads of d = C / N channels, H W size of the map.
"""

from __future__ import annotations

from torch import Tensor


def to_tokens(x: Tensor) -> Tensor:
    """Turn a map (B, C, H, W) into tokens (B, HW, C); a channels-last one is not copied."""
    return x.flatten(2).transpose(1, 2).contiguous()


def to_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn a map into the tokens of its heads (B, N, HW, d), d contiguous as fused kernels need."""
    return to_tokens(x).unflatten(2, (num_heads, -1)).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """View tokens (B, N, HW, d) as a map (B, C, H, W), the heads one after another in C."""
    return tokens.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (height, width))
