"""The linear layers of attention heads."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.ops.tokens.linear import linear


class Linear(nn.Linear):
    """``y = x W^T + b`` for tokens (B, N, C), computed on the fastest path.

    See `convattn.ops.tokens.linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C_in) to (B, N, C_out)."""
        return linear(x, self.weight, self.bias)
