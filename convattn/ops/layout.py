"""Conversions between maps and the tokens of attention heads.

B batch, C channels, N heads of d = C / N channels, H W size of the map.
"""

from __future__ import annotations

from torch import Tensor


def to_tokens(x: Tensor) -> Tensor:
    """Turn a map (B, C, H, W) into tokens (B, HW, C); a channels-last map is not copied."""
    return x.flatten(2).transpose(1, 2).contiguous()


def to_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn a map into the tokens of its heads (B, N, HW, d), d contiguous as fused kernels need."""
    return to_tokens(x).unflatten(2, (num_heads, -1)).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """View tokens (B, N, HW, d) as a map (B, C, H, W); the channels of a head are adjacent in C."""
    return tokens.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (height, width))


def check_tokens(tokens: Tensor, x: Tensor) -> None:
    """Raise an error unless tokens are (B, T, C), with the batch and the channels of a map."""
    given = tokens.dim() == 3 and tokens.shape[1] > 0
    if not given or tokens.shape[0] != x.shape[0] or tokens.shape[2] != x.shape[1]:
        raise ValueError(
            f"tokens must be (B, T, C) = ({x.shape[0]}, T, {x.shape[1]}), as the map is, got "
            f"{list(tokens.shape)}"
        )
