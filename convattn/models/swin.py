"""Swin with ACmix in place of window attention, and its baselines (arXiv 2111.14556)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from convattn.checks import check_choice, check_odd
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.block import PreNormBlock
from convattn.layers.norm import LayerNorm2d
from convattn.models._pretrained import pretrained_cfg
from convattn.models._pyramid import Parts, Pyramid, Stage
from convattn.models._registry import register_family, with_single_paths
from convattn.models._start import start_transformer
from convattn.models.official import Renames, add_names, checkpoint_filter
from convattn.ops.positions import ceil_divide

MIXERS = ("acmix", "conv")
NORM_EPS = 1e-5
PATCH = 4


@dataclass(frozen=True)
class SwinConfig:
    """The settings of a variant; each field is a keyword argument of the models."""

    embed_dims: tuple[int, ...] = (96, 192, 384, 768)  # channels of the stages
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of the stages
    num_heads: tuple[int, ...] = (3, 6, 12, 24)  # of the stages' attention
    window_size: int | tuple[int, ...] = 7  # one size for all stages, or one per stage
    mlp_ratio: float = 4.0
    mixer: str = "acmix"  # or "conv", a dense convolution instead of ACmix
    mix: str = "learned"  # an argument of ACmix
    shift: str = "learned"  # an argument of ACmix
    kernel_size: int = 3  # of the convolution
    drop_path_rate: float = 0.0


_TINY = SwinConfig(drop_path_rate=0.2)
_NANO = SwinConfig(
    embed_dims=(16, 32, 64, 96), depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 6), window_size=4
)
_ACMIX = {
    "acmix_swin_tiny": _TINY,
    "acmix_swin_small": replace(_TINY, depths=(2, 2, 18, 2), drop_path_rate=0.3),
    "acmix_swin_nano": _NANO,
}
VARIANTS: dict[str, SwinConfig] = {
    **with_single_paths(_ACMIX, "mix", conv="convolution", attn="attention"),
    "conv_swin_tiny": replace(_TINY, mixer="conv"),
    "conv_swin_nano": replace(_NANO, mixer="conv"),
}


class PatchEmbed(nn.Module):
    """Project each patch of 4 x 4 pixels: ``y = LayerNorm(Conv_4x4,stride 4(x))``.

    Args:
        in_chans: channels of the image.
        dim: channels of the output.

    Shape:
        (B, in_chans, H, W) to (B, dim, ceil(H / 4), ceil(W / 4)); zeros pad the last patches.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, PATCH, stride=PATCH)
        self.norm = LayerNorm2d(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, dim, ceil(H / 4), ceil(W / 4))."""
        return self.norm(self.conv(_pad_to_multiple(x, 4)))


class PatchMerging(nn.Module):
    """Halve the resolution: ``y = W LayerNorm([x_00, x_10, x_01, x_11])``, of each 2 x 2 pixels.

    Args:
        dim: channels of the input.
        out_dim: channels of the output.

    Shape:
        (B, dim, H, W) to (B, out_dim, ceil(H / 2), ceil(W / 2)); zeros pad the last pixels.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Conv2d(4 * dim, out_dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, out_dim, ceil(H / 2), ceil(W / 2))."""
        x = _pad_to_multiple(x, 2)
        x = x.unflatten(3, (x.shape[3] // 2, 2)).unflatten(2, (x.shape[2] // 2, 2))
        x = x.permute(0, 5, 3, 1, 2, 4).flatten(1, 3)  # the published order: column by column
        return self.reduction(self.norm(x))


class SwinBlock(PreNormBlock):
    """Residual block of ACmix or a convolution, and a feed-forward network.

    ``x = x + mixer(LN(x));  x = x + FFN(LN(x))``

    Args:
        dim: channels.
        mixer: ACmix or a convolution, from (B, dim, H, W) to the same shape.
        mlp_ratio: hidden channels of the FFN over ``dim``.
        drop_path: rate at which a branch of an image is dropped in training.

    Raises:
        ValueError: a size or a rate out of range.

    Swin (arXiv 2103.14030), section 3.1.
    """

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__(
            dim, pos_embed=False, mlp_ratio=mlp_ratio, drop_path=drop_path, norm_eps=NORM_EPS
        )
        self.mixer = mixer

    def mix(self, u: Tensor, context: Tensor) -> Tensor:
        """Mix the positions of ``u``."""
        return self.mixer(u)


class Swin(Pyramid):
    """Swin whose blocks have ACmix with window attention, shifted in every second block.

    ``logits = Linear(mean(LN(stages(stem(x)))))``; with ``mix="attention"`` this is Swin.

    Arguments and errors are those of `Backbone`.

    ACmix (CVPR 2022, arXiv 2111.14556) in Swin (arXiv 2103.14030). Departures from the published
    code: images may have any size. Zeros pad patches, merged pixels and windows at the border of
    the map, and padded positions of windows are masked; windows are not shifted where the map is
    no larger than one window.

    In Conv-Swin (``mixer="conv"``) one dense 3x3 convolution with bias, C to C, replaces the
    attention with its projections. It has 39.1 M parameters (39 M in the paper) and 6.1 G
    multiply-adds (4.5 G in the paper). The paper's two figures contradict each other: the weights
    of the convolutions are applied at 3136, 784, 196 and 49 positions, which costs 3.1 G, and the
    unchanged FFNs cost 2.8 G.
    """

    not_decayed = ("alpha", "beta", "relative_position_bias_table")

    @staticmethod
    def check(config: SwinConfig) -> None:
        """Raise unless the sizes and names are valid."""
        check_choice("mixer", config.mixer, MIXERS)
        if config.mixer == "conv" and (config.mix, config.shift) != ("learned", "learned"):
            raise ValueError(
                f"mix and shift are arguments of ACmix, got mix={config.mix!r} and "
                f"shift={config.shift!r} with mixer='conv'; leave them out, or build acmix_swin"
            )
        check_odd("kernel_size", config.kernel_size)
        named = (config.embed_dims, config.depths, config.num_heads, _windows(config))
        if len({len(sizes) for sizes in named}) > 1 or not config.depths:
            raise ValueError(
                "embed_dims, depths, num_heads and window_size, if it is a tuple, must each have "
                f"one entry per stage, got {', '.join(map(str, named))}"
            )

    def parts(self, config: SwinConfig) -> Parts:
        """Return the parts: a patch embedding, and stages that begin with patch merging."""
        widths = config.embed_dims
        return Parts(
            stem=PatchEmbed(self.in_chans, widths[0]),
            stage=partial(_stage, config),
            norm=LayerNorm2d(widths[-1], eps=NORM_EPS),
            widths=widths,
            depths=config.depths,
        )

    def start(self, module: nn.Module) -> None:
        """Initialize linear layers with a narrow normal, ACmix's group convolution with shifts.

        The convolutions of the stem, of ACmix (``fc``) and of Conv-Swin are not changed.
        """
        start_transformer(module)


def _pad_to_multiple(x: Tensor, step: int) -> Tensor:
    """Add zeros below and on the right, so that ``step`` divides the sizes."""
    # With symbolic sizes H + (step * n - H) simplifies to step * n. The padding is never skipped: a
    # branch on the size would restrict an exported graph to that size.
    bottom = step * ceil_divide(x.shape[2], step) - x.shape[2]
    right = step * ceil_divide(x.shape[3], step) - x.shape[3]
    return F.pad(x, [0, right, 0, bottom])


def _stage(config: SwinConfig, index: int, drop_path: list[float]) -> Stage:
    width = config.embed_dims[index]
    down = PatchMerging(config.embed_dims[index - 1], width) if index else nn.Identity()
    blocks = [
        SwinBlock(
            width,
            _mixer(config, stage=index, position=j),
            mlp_ratio=config.mlp_ratio,
            drop_path=rate,
        )
        for j, rate in enumerate(drop_path)
    ]
    return Stage(down, blocks)


def _mixer(config: SwinConfig, *, stage: int, position: int) -> nn.Module:
    width, kernel = config.embed_dims[stage], config.kernel_size
    if config.mixer == "conv":
        return nn.Conv2d(width, width, kernel, padding=kernel // 2)
    return ACmix(
        width,
        attention="shifted_window" if position % 2 else "window",
        num_heads=config.num_heads[stage],
        window_size=_windows(config)[stage],
        kernel_size=kernel,
        shift=config.shift,
        mix=config.mix,
        fc_bias=True,
    )


def _windows(config: SwinConfig) -> tuple[int, ...]:
    size = config.window_size
    return (size,) * len(config.depths) if isinstance(size, int) else tuple(size)


def _cfg(name: str) -> dict[str, Any]:
    size = 32 if "nano" in name else 224
    return pretrained_cfg(
        first_conv="stem.conv", classifier="head.fc", image_size=size, crop_pct=0.9
    )


def _published_names(model: nn.Module) -> Renames:
    assert isinstance(model, Swin)
    merging = [  # published at the end of a stage, here at the start of the next
        (rf"layers\.{i}\.downsample\.(.*)", rf"stages.{i + 1}.downsample.\1")
        for i in range(len(model.config.depths) - 1)
    ]
    return (
        (r"patch_embed\.proj\.(.*)", r"stem.conv.\1"),
        (r"patch_embed\.norm\.(.*)", r"stem.norm.\1"),
        *merging,
        (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(.*)", r"stages.\1.blocks.\2.mixer.\3"),
        (r"layers\.(\d+)\.blocks\.(.*)", r"stages.\1.blocks.\2"),
        (r"head\.(weight|bias)", r"head.fc.\1"),
    )


register_notrace_module(SwinBlock)  # one node in torch.fx: it reads sizes
add_names(Swin, _published_names)
register_family(
    __name__,
    Swin,
    VARIANTS,
    {name: _cfg(name) for name in VARIANTS},
    feature_cfg={"feature_cls": "getter", "flatten_sequential": True},
    feature_maps=lambda config: len(config.depths),
    checkpoint_filter=checkpoint_filter,
)
