"""Backbones with a class token in addition to the feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from timm.layers import ClassifierHead, DropPath, SelectAdaptivePool2d, trunc_normal_
from timm.models import register_notrace_module
from torch import Tensor, nn

from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attention.parts import prepend_tokens
from convattn.layers.block import NORM_EPS, check_branches
from convattn.layers.ffn import ConvMlp
from convattn.layers.foldable import may_fold_inside
from convattn.layers.norm import LayerNorm2d, add_and_norm, fuse_with_sum
from convattn.layers.one_node import OneNode
from convattn.models._backbone import POOLS
from convattn.models._pyramid import Pyramid, Stage, recompute
from convattn.models._start import start_transformer
from convattn.ops.resampling.resize import resize


class PositionEmbedding(OneNode):
    """Add a learnt vector to each position, and append a class token.

    ``y_p = x_p + e_p``; the token is ``c + e_0``. For a map of another size, e is interpolated.

    Args:
        dim: channels.
        grid: rows and columns of e.
        class_token: whether there is a class token.
        interpolation: "bilinear", or "bicubic" with antialiasing; corners are not aligned.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], *, class_token: bool, interpolation: str
    ) -> None:
        super().__init__()
        self.grid = grid
        self.interpolation = interpolation
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, class_token + grid[0] * grid[1], dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the token and the positions with small random values."""
        for parameter in self.parameters():
            if not parameter.is_meta:
                trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the map (B, dim, H, W) and the token (B, 1, dim) or None, in x's dtype."""
        tokens: Tensor | None = None
        if self.cls_token is not None:
            token = self.cls_token + self.pos_embed[:, :1]
            tokens = token.to(x.dtype).expand(x.shape[0], -1, -1)
        positions = self.pos_embed if tokens is None else self.pos_embed[:, 1:]
        grid = positions.transpose(1, 2).unflatten(2, self.grid)
        if x.shape[2:] != self.grid:
            grid = resize(grid, (x.shape[2], x.shape[3]), self.interpolation)
        return x + grid.to(x.dtype), tokens


class TokenBlock(OneNode):
    """Residual block of ACmix and a feed-forward network, for a map with or without tokens.

    ``x = x + ACmix(LN(x));  x = x + FFN(LN(x))``

    Args:
        dim: channels.
        mixer: the mixer, from ``dim`` to ``dim`` channels, with stride 1.
        mlp_ratio: hidden channels of the FFN over ``dim``.
        drop_path: rate at which a branch of an image is dropped in training.

    Raises:
        TypeError: a ratio that is no number.
        ValueError: a ratio or a rate out of range.

    ViT (arXiv 2010.11929), section 3.1.
    """

    def __init__(
        self, dim: int, mixer: ACmix, *, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        check_branches(mlp_ratio, drop_path)
        self.dim = dim
        self.norm1 = LayerNorm2d(dim, eps=NORM_EPS)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2: nn.Module = LayerNorm2d(dim, eps=NORM_EPS)
        self.mlp = ConvMlp(dim, max(1, int(dim * mlp_ratio)))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()
        self.mixer = mixer

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map (B, dim, H, W) and tokens (B, T, dim) or None to outputs of the same shapes."""
        if tokens is None:
            return self._residuals(x, self.mixer(self.norm1(x))), None
        # One column of tokens and pixels: all layers except the mixer work on each position alone.
        T, H, W = tokens.shape[1], x.shape[2], x.shape[3]
        column = join(x, tokens)
        u = self.norm1(column)
        mixed, seen = self.mixer(pixels_of(u, T, H, W), tokens_of(u, T))
        column = self._residuals(column, join(mixed, seen))
        return pixels_of(column, T, H, W), tokens_of(column, T)

    def reparameterize(self) -> None:
        """Fuse the sum after the mixer and the second norm into one module."""
        if may_fold_inside(self, self.norm2):
            self.norm2 = fuse_with_sum(self.norm2)

    def _residuals(self, x: Tensor, mixed: Tensor) -> Tensor:
        x, normed = add_and_norm(x, self.drop_path1(mixed).to(x.dtype), self.norm2)
        return x + self.drop_path2(self.mlp(normed)).to(x.dtype)


class TokenStage(Stage):
    """A downsampling layer, an optional position embedding, and blocks that also return tokens.

    Args:
        downsample: applied first.
        positions: applied next; None for none.
        blocks: each a `TokenBlock`.
    """

    def __init__(
        self,
        downsample: nn.Module,
        positions: PositionEmbedding | None,
        blocks: Sequence[TokenBlock],
    ) -> None:
        super().__init__(downsample, blocks)
        self.positions = positions

    def forward(  # type: ignore[override]
        self, x: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, C_in, H, W) and tokens (B, T, C) or None to (B, C, H', W') and tokens."""
        x = self.downsample(x)
        if self.positions is not None:
            x, tokens = self.positions(x)
        for block in self.blocks:
            if self.recomputes():
                x, tokens = recompute(block, x, tokens)
            else:
                x, tokens = block(x, tokens)
        return self.norm(x), tokens


class TokenPool(nn.Module):
    """Pool a column of tokens and positions: the first token, or the positions alone.

    Args:
        pool_type: "token", or timm's "avg", "max", "avgmax", "catavgmax", or "" for the column.
        num_prefix_tokens: tokens before the positions.
    """

    def __init__(self, pool_type: str, num_prefix_tokens: int) -> None:
        super().__init__()
        self.pool_type = pool_type
        self.num_prefix_tokens = num_prefix_tokens
        positions = "" if pool_type == "token" else pool_type
        self.pool = SelectAdaptivePool2d(pool_type=positions, flatten=bool(positions))

    def feat_mult(self) -> int:
        """Return the number of pooled features per channel."""
        return self.pool.feat_mult()

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, T + L, 1) to (B, C), for "catavgmax" (B, 2 C)."""
        if self.pool_type == "token":
            return x[:, :, 0, 0]
        if self.pool_type == "":
            return x
        return self.pool(x[:, :, self.num_prefix_tokens :])


class TokenPyramid(Pyramid):
    """`head(norm(stages(stem(x))))`, where stages may return a class token in addition to the map.

    ``forward_features`` returns a sequence as a map of one column, (B, C, 1 + H W, 1): the class
    token, then the last map row by row. A model without a class token, such as one whose last stage
    is pruned, returns the last map (B, C, H, W). ``forward_intermediates`` and ``features_only``
    return maps without the token.

    The stages are `TokenStage`. Arguments and errors are those of `Backbone`.
    """

    pools = (*POOLS, "token")
    not_decayed = ("alpha", "beta", "cls_token", "pos_embed")

    def build(self, config: Any, global_pool: str | None, output_stride: int) -> None:
        """Build a `Pyramid`, and name the norm of each stage as the module that returns its map."""
        super().build(config, global_pool, output_stride)
        for info in self.feature_info:
            info["module"] += ".norm"  # a stage returns its map and tokens, its norm the map alone

    def start(self, module: nn.Module) -> None:
        """Initialize linear layers and 1x1 convolutions with a narrow normal, biases with zero.

        Patch embeddings, spatial reductions and ACmix's convolution path are not changed.
        """
        start_transformer(module)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normed sequence (B, C, 1 + H W, 1) of images; without a token, the map."""
        self._check_images(x)
        x = self.stem(x)
        tokens: Tensor | None = None
        for stage in self.stages:
            x, tokens = stage(x, tokens)
        return self.norm(self._features(x, tokens))

    def _run(self, x: Tensor, count: int) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        x = self.stem(x)
        tokens: Tensor | None = None
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for i in range(count):
            x, tokens = self.stages[i](x, tokens)
            pairs.append((x, tokens))
        whole = count == len(self.feature_info)
        return self._features(x, tokens) if whole else x, pairs

    def _features(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return x if tokens is None or not self.num_prefix_tokens else join(x, tokens)

    def _split(self, features: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        T = self.num_prefix_tokens
        if T == 0:
            return features, None
        H, W = like.shape[2:]
        return pixels_of(features, T, H, W), tokens_of(features, T)

    def _usual_pool(self) -> str:
        return "token" if self.num_prefix_tokens else "avg"

    def _make_head(self, num_classes: int, global_pool: str) -> ClassifierHead:
        if global_pool == "token" and self.num_prefix_tokens == 0:
            raise ValueError(
                "global_pool='token' needs a class token, and this model has none (the convolution "
                "alone, or stages pruned); use global_pool='avg'"
            )
        like = "avg" if global_pool == "token" else global_pool  # with the same number of features
        head = super()._make_head(num_classes, like)
        head.global_pool = TokenPool(global_pool, self.num_prefix_tokens)
        return head


@torch.fx.wrap  # one node in a graph of torch.fx
def join(x: Tensor, tokens: Tensor) -> Tensor:
    """Return tokens (B, T, C) and a map (B, C, H, W) as one column (B, C, T + H W, 1)."""
    return prepend_tokens(tokens.transpose(1, 2).unsqueeze(3), x)


def pixels_of(column: Tensor, T: int, H: int, W: int) -> Tensor:
    """Return the map (B, C, H, W) in a column."""
    return column[:, :, T:, 0].unflatten(2, (H, W))


def tokens_of(column: Tensor, T: int) -> Tensor:
    """Return the tokens (B, T, C) in a column."""
    return column[:, :, :T, 0].transpose(1, 2)


for _module_class in (TokenBlock, PositionEmbedding):
    # One node each in torch.fx: they read sizes, and whether there are tokens.
    register_notrace_module(_module_class)
