"""The linear layers of attention heads in the deployed form."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.ops.tokens.linear import linear


class Linear(nn.Linear):
    """``y = x W^T + b`` for tokens (B, N, C), computed on the fastest path.

    See `convattn.ops.tokens.linear`.
    """

    @classmethod
    def like(cls, layer: nn.Linear) -> Linear:
        """Return a layer that has the parameters of a linear layer."""
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        made = cls(*sizes, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C_in) to (B, N, C_out)."""
        return linear(x, self.weight, self.bias)
