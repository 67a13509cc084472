"""The base class of GLNet's blocks: position embedding, mixer and FFN, with pre-norms."""

from __future__ import annotations

from typing import TypeGuard

from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from convattn.checks import check_divisible, check_map, check_positive, check_rate
from convattn.layers.depthwise import depthwise
from convattn.layers.ffn import ConvMlp
from convattn.layers.foldable import may_fold, may_fold_inside
from convattn.layers.folding import fold_factor, fold_identity
from convattn.layers.norm import LayerNorm2d, add_and_norm, fuse_with_sum
from convattn.layers.one_node import OneNode

NORM_EPS = 1e-6


class PreNormBlock(OneNode):
    """Residual block around a mixer, which a subclass defines.

    ``x = x0 + DW3x3(x0);  x = x + ls1 * mix(LN(x), x0);  x = x + ls2 * FFN(LN(x))``

    Args:
        dim: channels.
        pos_embed: whether to add the depth-wise 3x3 convolution.
        mlp_ratio: hidden channels of the FFN over ``dim``.
        mlp_dwconv: whether the FFN has a depth-wise 3x3 convolution.
        layer_scale: initial value of the learnt scale per channel of a branch; None for no scale.
        drop_path: rate at which a branch of an image is dropped in training.
        norm_eps: the number that the layer norms add to the variance.

    Raises:
        ValueError: a size or a rate out of range.

    GLMix (arXiv 2411.14429), the block of GLNet.
    """

    def __init__(
        self,
        dim: int,
        *,
        pos_embed: bool = True,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_branches(mlp_ratio, drop_path)
        self.dim = dim
        self.pos_embed = depthwise(dim, 3) if pos_embed else None
        self.norm1 = LayerNorm2d(dim, eps=norm_eps)
        self.ls1 = _layer_scale(dim, layer_scale)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2: nn.Module = LayerNorm2d(dim, eps=norm_eps)
        self.mlp = ConvMlp(dim, max(1, int(dim * mlp_ratio)), dwconv=mlp_dwconv)
        self.ls2 = _layer_scale(dim, layer_scale)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()
        self.folded = False

    def mix(self, u: Tensor, context: Tensor) -> Tensor:
        """Mix the positions of the normed map ``u``; ``context`` is the input of the block."""
        raise NotImplementedError

    def scale_mix(self, scale: Tensor) -> bool:
        """Multiply the output of ``mix`` by ``scale`` (dim,); return False if impossible."""
        return False

    def reparameterize(self) -> None:
        """Fold consecutive linear operations, exactly and permanently.

        ``x + DW(x)`` becomes one convolution. The layer scales are folded into the last layers of
        their branches. The first sum and the second norm become one module.
        """
        if self.pos_embed is None:
            self.folded = True
        elif not self.folded:
            self.folded = self._may_fold_away(self.pos_embed) and fold_identity(self.pos_embed)
        if self._may_fold_scale(self.ls1, "scale_mix") and self.scale_mix(self.ls1.gamma):
            self.ls1 = nn.Identity()
        if self._may_fold_scale(self.ls2) and fold_factor(self.mlp, self.ls2.gamma):
            self.ls2 = nn.Identity()
        if self._may_fold_away(self.norm2):
            self.norm2 = fuse_with_sum(self.norm2)

    def _may_fold_away(self, layer: nn.Module, fold: str = "reparameterize") -> bool:
        free = () if fold == "scale_mix" else ("mix", "scale_mix")
        return may_fold_inside(self, layer, fold, free)

    def _may_fold_scale(
        self, scale: nn.Module, fold: str = "reparameterize"
    ) -> TypeGuard[LayerScale2d]:
        if isinstance(scale, nn.Identity):
            return False
        return self._may_fold_away(scale, fold) and may_fold(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, dim, H, W) of the same dtype."""
        check_map(x, channels=self.dim)
        context = x
        if self.pos_embed is not None:
            x = self.pos_embed(x).to(x.dtype) if self.folded else x + self.pos_embed(x)
        mixed = self.drop_path1(self.ls1(self.mix(self.norm1(x), context)))
        x, normed = add_and_norm(x, _in_type_of(x, mixed), self.norm2)
        return x + _in_type_of(x, self.drop_path2(self.ls2(self.mlp(normed))))


def check_branches(mlp_ratio: float, drop_path: float) -> None:
    """Raise an error if a block's FFN ratio or drop rate is not a number in range."""
    if not isinstance(mlp_ratio, int | float):
        raise TypeError(f"mlp_ratio must be a number, got {mlp_ratio!r}")
    if mlp_ratio <= 0:
        raise ValueError(f"mlp_ratio must be positive, got {mlp_ratio}")
    check_rate("drop_path", drop_path)


def resolve_num_heads(dim: int, num_heads: int | None, head_dim: int) -> int:
    """Return ``num_heads``, or one head per ``head_dim`` channels; raise unless they fit."""
    if num_heads is None:
        check_divisible("dim", dim, "head_dim", head_dim)
        return dim // head_dim
    check_divisible("dim", dim, "num_heads", num_heads)
    return num_heads


def _in_type_of(x: Tensor, branch: Tensor) -> Tensor:
    # Under autocast the scales are float32, and all following maps would be float32 too.
    return branch if branch.dtype == x.dtype else branch.to(x.dtype)


def _layer_scale(dim: int, init: float | None) -> nn.Module:
    return nn.Identity() if init is None else LayerScale2d(dim, init)
