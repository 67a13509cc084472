"""DeiT, the vision transformer, with ACmix in place of its attention (arXiv 2111.14556)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from convattn.checks import check_positive
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attention.parts import GlobalAttention
from convattn.layers.block import NORM_EPS
from convattn.layers.norm import LayerNorm2d
from convattn.models._class_token import (
    PositionEmbedding,
    TokenBlock,
    TokenPyramid,
    TokenStage,
)
from convattn.models._pretrained import pretrained_cfg
from convattn.models._pyramid import Parts
from convattn.models._registry import register_family, with_single_paths
from convattn.models.official import Renames, add_names, checkpoint_filter

PATCH = 16


@dataclass(frozen=True)
class DeiTConfig:
    """The settings of a variant; each field is a keyword argument of the models."""

    embed_dim: int  # channels
    num_heads: int
    depth: int = 12  # blocks
    mlp_ratio: float = 4.0
    mix: str = "learned"  # an argument of ACmix
    shift: str = "learned"  # an argument of ACmix
    kernel_size: int = 3  # of the convolution in ACmix
    img_size: int = 224  # side of the images that the position embedding is made for
    drop_path_rate: float = 0.1


_ACMIX = {
    "acmix_deit_tiny": DeiTConfig(embed_dim=192, num_heads=3),
    "acmix_deit_small": DeiTConfig(embed_dim=384, num_heads=6),
    "acmix_deit_nano": DeiTConfig(
        embed_dim=64, num_heads=4, depth=4, img_size=32, drop_path_rate=0.0
    ),
}
VARIANTS: dict[str, DeiTConfig] = with_single_paths(
    _ACMIX, "mix", conv="convolution", attn="attention"
)


class DeiT(TokenPyramid):
    """Vision transformer whose blocks have ACmix with global attention.

    ``logits = Linear(LN(blocks([c; patches(x)] + e))_0)``, with class token c and positions e.
    With ``mix="attention"`` this is DeiT.

    ``forward_features`` returns (B, C, 1 + H W, 1), the class token and then the positions of the
    map row by row. ``forward_intermediates`` and ``features_only`` return the map after each block,
    without the token, all at stride 16; by default ``features_only`` returns the last three.
    With ``mix="convolution"`` a token would have no effect: the model has no token and pools its
    map, which ``forward_features`` returns.

    Arguments and errors are those of `Backbone`.

    ACmix (CVPR 2022, arXiv 2111.14556), "Generalization to Other Attention Modes", in DeiT (arXiv
    2012.12877). The paper trains no such model. Our choices: the fully connected layer has a bias,
    and alpha multiplies the attention after its output projection, as in the published Swin-ACmix;
    the class token is used by the attention only. Rows and columns that do not fill a patch are
    ignored. For other image sizes the positions are interpolated, bicubic with antialiasing, as in
    timm.
    """

    output_strides = (PATCH,)

    @staticmethod
    def check(config: DeiTConfig) -> None:
        """Raise unless the sizes are valid."""
        for name in ("embed_dim", "depth", "img_size"):
            check_positive(name, getattr(config, name))
        if config.img_size < PATCH:
            raise ValueError(f"img_size must be at least {PATCH}, got {config.img_size}")

    def parts(self, config: DeiTConfig) -> Parts:
        """Return the parts: each block is a stage, so that timm finds a map after each block."""
        dim, depth = config.embed_dim, config.depth
        return Parts(
            stem=nn.Conv2d(self.in_chans, dim, PATCH, stride=PATCH),
            stage=partial(_stage, config),
            norm=LayerNorm2d(dim, eps=NORM_EPS),
            widths=[dim] * depth,
            depths=[1] * depth,
            reductions=[PATCH] * depth,
            num_prefix_tokens=int(_has_class_token(config)),
        )


def _has_class_token(config: DeiTConfig) -> bool:
    return config.mix != "convolution"


def _stage(config: DeiTConfig, index: int, drop_path: list[float]) -> TokenStage:
    side = config.img_size // PATCH
    positions = None
    if index == 0:
        positions = PositionEmbedding(
            config.embed_dim,
            (side, side),
            class_token=_has_class_token(config),
            interpolation="bicubic",
        )
    return TokenStage(nn.Identity(), positions, [_block(config, rate) for rate in drop_path])


def _block(config: DeiTConfig, drop_path: float) -> TokenBlock:
    dim = config.embed_dim
    mixer = ACmix(
        dim,
        attention=GlobalAttention(dim, num_heads=config.num_heads, proj=True),
        mix=config.mix,
        shift=config.shift,
        kernel_size=config.kernel_size,
        fc_bias=True,
    )
    return TokenBlock(dim, mixer, mlp_ratio=config.mlp_ratio, drop_path=drop_path)


def _cfg(config: DeiTConfig) -> dict[str, Any]:
    cfg = pretrained_cfg(
        first_conv="stem", classifier="head.fc", image_size=config.img_size, crop_pct=0.9
    )
    side = config.img_size // PATCH
    cfg["pool_size"] = (1 + side**2, 1) if _has_class_token(config) else (side, side)
    return cfg


def _published_names(model: nn.Module) -> Renames:
    block = r"blocks\.(\d+)"
    ours = r"stages.\1.blocks.0"
    return (
        (r"(cls_token|pos_embed)", r"stages.0.positions.\1"),
        (r"patch_embed\.proj\.(.*)", r"stem.\1"),
        (
            rf"{block}\.attn\.qkv\.(.*)",
            tuple(rf"{ours}.mixer.{name}_proj.\2" for name in "qkv"),
        ),
        (rf"{block}\.attn\.proj\.(.*)", rf"{ours}.mixer.attn.proj.\2"),
        (rf"{block}\.(.*)", rf"{ours}.\2"),
        (r"head\.(weight|bias)", r"head.fc.\1"),
    )


add_names(DeiT, _published_names)
register_family(
    __name__,
    DeiT,
    VARIANTS,
    {name: _cfg(config) for name, config in VARIANTS.items()},
    feature_cfg={"out_indices": 3, "feature_cls": "getter"},
    feature_maps=lambda config: config.depth,
    checkpoint_filter=checkpoint_filter,
)
