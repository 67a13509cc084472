"""Multi-head attention of the GLNet blocks: between slots, and between all positions."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.layers.foldable import may_read
from convattn.layers.folding import fold_affine
from convattn.layers.linear import Linear
from convattn.ops.tokens.heads import attend_heads


class HeadAttention(nn.Module):
    """Multi-head attention: ``proj(softmax(q k^T / sqrt(d)) v)`` with ``q, k, v = qkv(x)``.

    Args:
        dim: channels.
        num_heads: heads, which divide the channels.

    It has the parameters of timm's ``Attention``; `convattn.ops.tokens.heads` computes the
    attention.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, dim) to (B, N, dim)."""
        y: Tensor = self.proj(attend_heads(self.qkv(x), self.num_heads))
        return y

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Replace the outputs y by ``scale * y + shift``, both (dim,); False if impossible."""
        return fold_affine(self.proj, scale, shift)

    def reparameterize(self) -> None:
        """Replace the linear layers by `Linear`, which computes the same on the fastest path."""
        for name in ("qkv", "proj"):
            layer = getattr(self, name)
            if may_read(layer) and type(layer) is nn.Linear:
                setattr(self, name, Linear.like(layer))
