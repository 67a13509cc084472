"""PVT with ACmix in place of its attention, and PVT itself (arXiv 2111.14556, 2102.12122)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from convattn.checks import check_positive
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attention.parts import SpatialReductionAttention
from convattn.layers.block import NORM_EPS
from convattn.layers.norm import LayerNorm2d
from convattn.models._backbone import check_stages
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

PATCHES = (4, 2, 2, 2)  # kernel and stride of the stages' patch embeddings
EMBED_NORM_EPS = 1e-5  # of the norms in patch embeddings; PVT's other norms have NORM_EPS


@dataclass(frozen=True)
class PVTConfig:
    """The settings of a variant; each field is a keyword argument of the models."""

    depths: tuple[int, ...]  # blocks of the stages
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)  # channels of the stages
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0)
    reductions: tuple[int, ...] = (
        8,
        4,
        2,
        1,
    )  # of the map from which keys and values are projected
    mix: str = "learned"  # an argument of ACmix
    shift: str = "learned"  # an argument of ACmix
    kernel_size: int = 3  # of the convolution in ACmix
    img_size: int = 224  # side of the images that the position embeddings are made for
    drop_path_rate: float = 0.1


_TINY = PVTConfig(depths=(2, 2, 2, 2))
_SMALL = PVTConfig(depths=(3, 4, 6, 3))
_NANO = PVTConfig(
    depths=(1, 1, 1, 1),
    embed_dims=(16, 32, 80, 128),
    mlp_ratios=(4.0, 4.0, 2.0, 2.0),
    img_size=32,
    drop_path_rate=0.0,
)
_SIZES = {"tiny": _TINY, "small": _SMALL, "nano": _NANO}
_ACMIX = {f"acmix_pvt_{size}": config for size, config in _SIZES.items()}
VARIANTS: dict[str, PVTConfig] = {
    **{f"pvt_{size}": replace(config, mix="attention") for size, config in _SIZES.items()},
    **with_single_paths(_ACMIX, "mix", conv="convolution", attn="attention"),
}


class PVT(TokenPyramid):
    """Four stages of transformer blocks whose mixer is ACmix with spatial-reduction attention.

    ``logits = Linear(LN(stages(stem(x)))_0)``: the last stage adds a class token, and the
    classifier reads the token only. With ``mix="attention"`` this is PVT.

    ``forward_features`` returns (B, C, 1 + H W, 1), the class token and then the positions of the
    last map row by row; ``forward_intermediates`` and ``features_only`` return the maps at
    strides 4, 8, 16 and 32, without the token. With ``mix="convolution"`` a token would have no
    effect: the model has no token and pools its last map, which ``forward_features`` returns.

    Arguments and errors are those of `Backbone`.

    PVT v1 (arXiv 2102.12122), section 3; ACmix (CVPR 2022, arXiv 2111.14556). As in PVT, rows and
    columns that do not fill a patch are ignored. The code of PVT-ACmix is not published. Our
    choice: q has the resolution of the map, k and v that of the reduced map, and are repeated to
    the size of the map for the convolution path; the fully connected layer has a bias, and alpha
    multiplies the attention after its output projection, as in the published Swin-ACmix; the class
    token is used by the attention only.
    """

    @staticmethod
    def check(config: PVTConfig) -> None:
        """Raise unless the sizes are valid."""
        check_positive("img_size", config.img_size)
        if config.img_size < 32:
            raise ValueError(f"img_size must be at least 32, got {config.img_size}")
        for name in ("depths", "embed_dims", "num_heads", "mlp_ratios", "reductions"):
            check_stages(config, len(PATCHES), name)

    def parts(self, config: PVTConfig) -> Parts:
        """Return the parts, with position embeddings in each stage and a token in the last."""
        widths = config.embed_dims
        return Parts(
            stem=_patch_embed(self.in_chans, widths[0], PATCHES[0]),
            stage=partial(_stage, config),
            norm=LayerNorm2d(widths[-1], eps=NORM_EPS),
            widths=widths,
            depths=config.depths,
            num_prefix_tokens=int(_has_class_token(config)),
        )


def _has_class_token(config: PVTConfig) -> bool:
    return config.mix != "convolution"


def _patch_embed(in_chans: int, dim: int, patch: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_chans, dim, patch, stride=patch), LayerNorm2d(dim, eps=EMBED_NORM_EPS)
    )


def _stage(config: PVTConfig, index: int, drop_path: list[float]) -> TokenStage:
    dim = config.embed_dims[index]
    last = index == len(PATCHES) - 1
    side = _grids(config)[index]
    down: nn.Module = nn.Identity()
    if index:
        down = _patch_embed(config.embed_dims[index - 1], dim, PATCHES[index])
    positions = PositionEmbedding(
        dim,
        (side, side),
        class_token=last and _has_class_token(config),
        interpolation="bilinear",
    )
    blocks = [
        TokenBlock(dim, _mixer(config, index), mlp_ratio=config.mlp_ratios[index], drop_path=rate)
        for rate in drop_path
    ]
    return TokenStage(down, positions, blocks)


def _mixer(config: PVTConfig, index: int) -> ACmix:
    dim = config.embed_dims[index]
    attention = SpatialReductionAttention(
        dim, num_heads=config.num_heads[index], reduction=config.reductions[index], proj=True
    )
    return ACmix(
        dim,
        attention=attention,
        mix=config.mix,
        shift=config.shift,
        kernel_size=config.kernel_size,
        fc_bias=True,
    )


def _grids(config: PVTConfig) -> list[int]:
    """Return the side of each stage's map, for an image of ``img_size``."""
    sides = [config.img_size]
    for patch in PATCHES:
        sides.append(sides[-1] // patch)
    return sides[1:]


def _cfg(name: str, config: PVTConfig) -> dict[str, Any]:
    cfg = pretrained_cfg(
        first_conv="stem.0", classifier="head.fc", image_size=config.img_size, crop_pct=0.9
    )
    side = _grids(config)[-1]
    if _has_class_token(config):
        cfg["pool_size"] = (1 + side**2, 1)
    return cfg


def _published_names(model: nn.Module) -> Renames:
    names: list[tuple[str, str | tuple[str, ...]]] = [
        (r"cls_token", "stages.3.positions.cls_token"),
        (r"patch_embed1\.proj\.(.*)", r"stem.0.\1"),
        (r"patch_embed1\.norm\.(.*)", r"stem.1.\1"),
        (r"head\.(weight|bias)", r"head.fc.\1"),
    ]
    for i in range(len(PATCHES)):
        ours, block = rf"stages.{i}", rf"block{i + 1}\.(\d+)"
        names += [
            (rf"pos_embed{i + 1}", f"{ours}.positions.pos_embed"),
            (rf"patch_embed{i + 1}\.proj\.(.*)", rf"{ours}.downsample.0.\1"),
            (rf"patch_embed{i + 1}\.norm\.(.*)", rf"{ours}.downsample.1.\1"),
            (rf"{block}\.attn\.q\.(.*)", rf"{ours}.blocks.\1.mixer.q_proj.\2"),
            (
                rf"{block}\.attn\.kv\.(.*)",
                tuple(rf"{ours}.blocks.\1.mixer.{name}_proj.\2" for name in "kv"),
            ),
            (rf"{block}\.attn\.sr\.(.*)", rf"{ours}.blocks.\1.mixer.attn.reduce.\2"),
            (rf"{block}\.attn\.(proj|norm)\.(.*)", rf"{ours}.blocks.\1.mixer.attn.\2.\3"),
            (rf"{block}\.(.*)", rf"{ours}.blocks.\1.\2"),
        ]
    return names


add_names(PVT, _published_names)
register_family(
    __name__,
    PVT,
    VARIANTS,
    {name: _cfg(name, config) for name, config in VARIANTS.items()},
    feature_cfg={"feature_cls": "getter"},
    checkpoint_filter=checkpoint_filter,
)
