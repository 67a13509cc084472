"""The attention block of GLNet: global attention over all positions."""

from __future__ import annotations

from torch import Tensor

from convattn.layers.block import PreNormBlock, resolve_num_heads
from convattn.layers.folding import fold_factor
from convattn.layers.heads import HeadAttention


class AttentionBlock(PreNormBlock):
    """Residual block with multi-head attention over all positions of the map.

    ``x = x0 + DW3x3(x0);  x = x + ls1 * MHA(LN(x));  x = x + ls2 * FFN(LN(x))``

    Args:
        dim: channels.
        num_heads: heads of the attention; None for one per ``head_dim`` channels.
        head_dim: channels of a head if ``num_heads`` is None.
        pos_embed: whether to add the depth-wise 3x3 convolution.
        mlp_ratio: hidden channels of the FFN over ``dim``.
        mlp_dwconv: whether the FFN has a depth-wise 3x3 convolution.
        layer_scale: initial value of the learnt scale per channel of a branch; None for no scale.
        drop_path: rate at which a branch of an image is dropped in training.

    Raises:
        ValueError: channels that the heads do not divide, or a rate out of range.

    GLMix (arXiv 2411.14429), the "mha" blocks of GLNet and every second block of its "hybrid"
    stages. In GLNet-STL the blocks have neither position embedding nor depth-wise convolution.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        head_dim: int = 32,
        pos_embed: bool = True,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            pos_embed=pos_embed,
            mlp_ratio=mlp_ratio,
            mlp_dwconv=mlp_dwconv,
            layer_scale=layer_scale,
            drop_path=drop_path,
        )
        self.attn = HeadAttention(dim, resolve_num_heads(dim, num_heads, head_dim))

    def mix(self, u: Tensor, context: Tensor) -> Tensor:
        """Attend from every position to every position."""
        mixed = self.attn(u.flatten(2).transpose(1, 2))
        return mixed.transpose(1, 2).unflatten(2, u.shape[-2:])

    def scale_mix(self, scale: Tensor) -> bool:
        """Fold ``scale``, a factor per channel, into the output projection of the attention."""
        return fold_factor(self.attn, scale)
