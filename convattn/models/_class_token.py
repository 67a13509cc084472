"""Backbones with a class token: its place beside the map, and its part in timm's contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, SelectAdaptivePool2d, trunc_normal_
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attention.parts import prepend_tokens
from convattn.layers.block import PreNormBlock
from convattn.layers.norm import add_and_norm
from convattn.layers.one_node import OneNode
from convattn.models._backbone import POOLS, Pyramid, Stage, named_parameters_called
from convattn.models._start import start_linear, start_transformer
from convattn.ops.resampling.resize import resize

NORM_EPS = 1e-6
NOT_WEIGHTS = ("alpha", "beta", "cls_token", "pos_embed")


class PositionEmbedding(OneNode):
    """Add a learnt vector to each position, and put a class token beside the map.

    ``y_p = x_p + e_p``; the token is ``c + e_0``. For another grid than its own, e is interpolated.

    Args:
        dim: channels.
        grid: rows and columns of the map that it is made for.
        class_token: whether there is one.
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
        """Start all at small random values."""
        for parameter in self.parameters():
            if not parameter.is_meta:
                trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the map (B, dim, H, W) and the token (B, 1, dim) or None, in x's dtype."""
        positions: Tensor = self.pos_embed
        tokens: Tensor | None = None
        if self.cls_token is not None:
            token = self.cls_token + positions[:, :1]
            tokens = token.to(x.dtype).expand(x.shape[0], -1, -1)
            positions = positions[:, 1:]
        grid = positions.transpose(1, 2).unflatten(2, self.grid)
        if x.shape[2] != self.grid[0] or x.shape[3] != self.grid[1]:
            grid = resize(grid, (x.shape[2], x.shape[3]), self.interpolation)
        return x + grid.to(x.dtype), tokens


class TokenBlock(PreNormBlock):
    """Residual block of ACmix and a feed-forward network, for a map with or without tokens.

    ``x = x + ACmix(LN(x));  x = x + FFN(LN(x))``

    Args:
        dim: channels.
        mixer: from ``dim`` to ``dim`` channels, of stride 1.
        mlp_ratio: hidden channels of the FFN over ``dim``.
        drop_path: rate at which a branch of an image is dropped in training.

    Raises:
        ValueError: a size or a rate out of range.

    ViT (arXiv 2010.11929), section 3.1.
    """

    def __init__(
        self, dim: int, mixer: ACmix, *, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__(
            dim, pos_embed=False, mlp_ratio=mlp_ratio, drop_path=drop_path, norm_eps=NORM_EPS
        )
        self.mixer = mixer

    def forward(  # type: ignore[override]
        self, x: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, dim, H, W) and tokens (B, T, dim) or None to the same."""
        if tokens is None:
            return self._feed_forward(x, self.mixer(self.norm1(x))), None
        else:  # noqa: RET505  # TorchScript compiles what follows a return
            # One column of tokens and pixels, as all but the mixer treats them alike.
            T, H, W = tokens.shape[1], x.shape[2], x.shape[3]
            column = join(x, tokens)
            u = self.norm1(column)
            mixed, seen = self.mixer.forward_tokens(pixels_of(u, T, H, W), tokens_of(u, T))
            column = self._feed_forward(column, join(mixed, seen))
            return pixels_of(column, T, H, W), tokens_of(column, T)

    def _feed_forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        x, normed = add_and_norm(x, self.drop_path1(mixed).to(x.dtype), self.norm2)
        return x + self.drop_path2(self.mlp(normed)).to(x.dtype)


class TokenStage(Stage):
    """A transition, positions where the stage has them, and blocks that pass tokens on.

    Args:
        downsample: Applied first.
        positions: Applied next; None for none.
        blocks: Each a `TokenBlock`.
    """

    def __init__(
        self,
        downsample: nn.Module,
        positions: PositionEmbedding | None,
        blocks: Sequence[TokenBlock],
    ) -> None:
        super().__init__(downsample, blocks)
        self.blocks = nn.ModuleList(blocks)  # TorchScript would compile the call of a Sequential
        self.positions = positions

    def forward(  # type: ignore[override]
        self, x: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, C_in, H, W) and tokens (B, T, C) or None to (B, C, H', W') and tokens."""
        x = self.downsample(x)
        if self.positions is not None:
            x, tokens = self.positions(x)
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute and not torch.jit.is_scripting():  # type: ignore[attr-defined]
                x, tokens = checkpoint(block, x, tokens, use_reentrant=False)
            else:
                x, tokens = block(x, tokens)
        return self.norm(x), tokens  # the norm's output is the stage's map, by name


class Join(OneNode):
    """Put the tokens before the positions, in one column."""

    def forward(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """Return (B, C, T + H W, 1), or without tokens the map."""
        return x if tokens is None else join(x, tokens)


class TokenPool(nn.Module):
    """Pool a column of tokens and positions: the first token, or the positions alone.

    Args:
        pool_type: "token", or timm's "avg", "max", "avgmax", "catavgmax", or "" for the column.
        num_prefix_tokens: Tokens before the positions.
    """

    def __init__(self, pool_type: str, num_prefix_tokens: int) -> None:
        super().__init__()
        self.pool_type = pool_type
        self.num_prefix_tokens = num_prefix_tokens
        positions = "" if pool_type == "token" else pool_type
        self.pool = SelectAdaptivePool2d(pool_type=positions, flatten=bool(positions))

    def feat_mult(self) -> int:
        """Return how many numbers are pooled of each channel."""
        return self.pool.feat_mult()

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, T + L, 1) to (B, C), for "catavgmax" (B, 2 C)."""
        if self.pool_type == "token":
            return x[:, :, 0, 0]
        elif self.pool_type == "":  # noqa: RET505  # TorchScript compiles what follows a return
            return x
        else:
            return self.pool(x[:, :, self.num_prefix_tokens :])


class TokenPyramid(Pyramid):
    """`head(norm(stages(stem(x))))`, where stages may pass a class token on beside the map.

    ``forward_features`` returns a sequence as a map of one column, (B, C, 1 + H W, 1): the class
    token, then the last map row by row. Without a class token, which a model has none of once its
    last stage is pruned, it returns the last map (B, C, H, W). ``forward_intermediates`` and
    ``features_only`` give maps alone, never the token.

    Args:
        class_token: Whether the last stages have one.
        stages: Each a `TokenStage`.
        global_pool: What the classifier sees: "token", or timm's "avg", "max", "avgmax" or
            "catavgmax" over the positions, or "" for the sequence itself; None for "token" where
            there is one, else "avg".
        **parts: As `Pyramid` takes them.
    """

    pools = (*POOLS, "token")

    def __init__(
        self,
        *,
        class_token: bool,
        stages: Sequence[TokenStage],
        global_pool: str | None,
        **parts: Any,
    ) -> None:
        pool = ("token" if class_token else "avg") if global_pool is None else global_pool
        super().__init__(
            stages=stages, global_pool=pool, num_prefix_tokens=int(class_token), **parts
        )
        self.stages = nn.ModuleList(stages)
        self.join = Join()
        for info in self.feature_info:
            info["module"] += ".norm"  # a stage gives its map and tokens, this the map alone

    def init_weights(self) -> None:
        """Start linear layers and 1x1 convolutions at a narrow normal, biases at zero.

        Patch embeddings, spatial reductions and ACmix's convolution path start as they do alone.
        """
        start_transformer(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normed sequence (B, C, 1 + H W, 1) of images, or without a token the map."""
        self._check_images(x)
        x = self.stem(x)
        tokens: Tensor | None = None
        for stage in self.stages:
            x, tokens = stage(x, tokens)
        return self.norm(self._features(x, tokens))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place; see `Pyramid.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        self.head.apply(start_linear)

    def no_weight_decay(self) -> set[str]:
        """Return the names of positions, class token, alpha and beta, which should not shrink."""
        return named_parameters_called(self, *NOT_WEIGHTS)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        return_prefix_tokens: bool = False,
    ) -> Any:
        """Return the final features and the maps of chosen stages; see `Pyramid`.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to return.
            norm: Whether the last stage's map among them, and its token, are normed.
            stop_early: Whether to leave out the stages after the last one returned.
            output_fmt: Only "NCHW".
            intermediates_only: Whether to leave out the final features.
            return_prefix_tokens: Whether each map comes with its token, as a pair of the map and
                (B, 1, C): zeros where the token joins in a later stage. A model without a class
                token gives its maps alone, as timm's do.
        """
        final, pairs = self._intermediates(x, indices, norm, stop_early, output_fmt)
        given: list[Any] = [x for x, _ in pairs]
        if return_prefix_tokens and self.num_prefix_tokens:
            given = [(x, _zeros(x) if tokens is None else tokens) for x, tokens in pairs]
        return given if intermediates_only else (final, given)

    def _run(self, x: Tensor, count: int) -> tuple[Tensor, list[Any]]:
        x = self.stem(x)
        tokens: Tensor | None = None
        maps: list[Any] = []
        for i in range(count):
            x, tokens = self.stages[i](x, tokens)
            maps.append((x, tokens))
        whole = count == len(self.feature_info)
        return self._features(x, tokens) if whole else x, maps

    def _features(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return self.join(x, tokens) if self.num_prefix_tokens else x

    def _as_map(self, features: Tensor, like: Any) -> Any:
        T = self.num_prefix_tokens
        if T == 0:
            return features, None
        H, W = like[0].shape[2:]
        return pixels_of(features, T, H, W), tokens_of(features, T)

    def _usual_pool(self) -> str:
        return "token" if self.num_prefix_tokens else "avg"

    def _make_head(self, num_classes: int, global_pool: str) -> ClassifierHead:
        if global_pool == "token" and self.num_prefix_tokens == 0:
            raise ValueError(
                "global_pool='token' needs a class token, and this model has none (the convolution "
                "alone, or stages pruned); use global_pool='avg'"
            )
        like = "avg" if global_pool == "token" else global_pool  # as many features
        head = super()._make_head(num_classes, like)
        head.global_pool = TokenPool(global_pool, self.num_prefix_tokens)
        return head


def join(x: Tensor, tokens: Tensor) -> Tensor:
    """Return tokens (B, T, C) and a map (B, C, H, W) as one column (B, C, T + H W, 1)."""
    return prepend_tokens(tokens.transpose(1, 2).unsqueeze(3), x)


def pixels_of(column: Tensor, T: int, H: int, W: int) -> Tensor:
    """Return the map (B, C, H, W) in a column."""
    return column[:, :, T:, 0].unflatten(2, (H, W))


def tokens_of(column: Tensor, T: int) -> Tensor:
    """Return the tokens (B, T, C) in a column."""
    return column[:, :, :T, 0].transpose(1, 2)


def _zeros(x: Tensor) -> Tensor:
    """Return tokens (B, 1, C) in the place of those that a map does not have."""
    return x.new_zeros(x.shape[0], 1, x.shape[1])


for _module_class in (TokenBlock, PositionEmbedding, Join):
    # They look at sizes, and whether there are tokens: torch.fx takes each as one node.
    register_notrace_module(_module_class)
