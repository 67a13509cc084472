"""SAN, patch-wise, and SAN with ACmix (arXiv 2004.13621, 2111.14556)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import register_notrace_module
from torch import Tensor, nn

from convattn.checks import check_map, check_rate
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.folding import fold_pair
from convattn.layers.one_node import OneNode
from convattn.models._backbone import (
    Pyramid,
    Stage,
    check_sizes,
    drop_path_rates,
    named_parameters_called,
    only_stride_32,
    placed,
)
from convattn.models._official import Renames, add_names, checkpoint_filter
from convattn.models._pretrained import pretrained_cfg
from convattn.models._registry import register_family, with_single_paths

NARROWEST = 32  # the attention works on a quarter of the channels, 8 of which share weights


@dataclass(frozen=True)
class SANConfig:
    """Everything that tells one from another; each field is also a keyword of its models."""

    depths: tuple[int, ...]  # blocks of the stages
    embed_dims: tuple[int, ...] = (64, 256, 512, 1024, 2048)  # channels of the stages
    window_sizes: tuple[int, ...] = (3, 7, 7, 7, 7)  # patches of the stages' attention
    mix: str = "attention"  # of ACmix, as the rest; the attention alone is SAN
    shift: str = "learned"
    kernel_size: int = 3
    drop_path_rate: float = 0.0


_SAN = {
    "san10": SANConfig(depths=(2, 1, 2, 4, 1)),
    "san15": SANConfig(depths=(3, 2, 3, 5, 2)),
    "san19": SANConfig(depths=(3, 3, 4, 6, 3)),
    "san_nano": SANConfig(
        depths=(1, 1, 1, 1, 1), embed_dims=(32, 32, 64, 96, 128), window_sizes=(3, 3, 3, 3, 3)
    ),
}
_ACMIX = {f"acmix_{name}": replace(config, mix="learned") for name, config in _SAN.items()}
VARIANTS: dict[str, SANConfig] = {
    **_SAN,
    **with_single_paths(_ACMIX, "mix", conv="convolution", attn="attention"),
}


class SANBlock(OneNode):
    """Residual bottleneck of ACmix with patch-wise attention, or of one of its paths.

    ``y = x + W ReLU(BN(ACmix(ReLU(BN(x)))))``, from C to C / 4 channels and back

    Args:
        dim: channels C, a multiple of 32.
        window_size: K of the patches, odd.
        mix: how ACmix weighs its paths; "attention" alone is the block of SAN.
        shift: how ACmix shifts.
        kernel_size: K_c of its convolution, odd.
        drop_path: rate at which the branch of an image is dropped in training.

    Raises:
        ValueError: sizes or names that do not fit.

    SAN (CVPR 2020, arXiv 2004.13621), figure 2; ACmix (arXiv 2111.14556). In ACmix q, k and v are
    1, 1 and 4 groups of C / 16 channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        window_size: int = 7,
        mix: str = "attention",
        shift: str = "learned",
        kernel_size: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_rate("drop_path", drop_path)
        self.dim = dim
        self.norm1 = nn.BatchNorm2d(dim)
        self.mixer = ACmix(
            dim,
            dim // 4,
            attention="patchwise",
            window_size=window_size,
            kernel_size=kernel_size,
            shift=shift,
            mix=mix,
        )
        self.norm2 = nn.BatchNorm2d(dim // 4)
        self.expand = nn.Conv2d(dim // 4, dim, 1)
        self.act = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def reparameterize(self) -> None:
        """Fold the norm after ACmix into it, exactly, where ACmix can take a shift.

        The attention alone cannot: its weights do not sum to one. The first norm stays: it follows
        a sum that goes on beside the branch, and precedes a ReLU.
        """
        fold_pair(self, "mixer", "norm2")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, dim, H, W)."""
        check_map(x, channels=self.dim)
        y = self.mixer(self.act(self.norm1(x)))
        y = self.expand(self.act(self.norm2(y)))
        return x + self.drop_path(y).to(x.dtype)


class SAN(Pyramid):
    """Five stages of residual blocks with patch-wise attention, alone or in ACmix.

    ``logits = Linear(mean(stages(ReLU(BN(W x)))))``; a stage is a 2x2 max-pool, a 1x1 convolution,
    its blocks, and ``ReLU(BN(x))``.

    Args:
        config: The variant.
        in_chans: Channels of the image.
        num_classes: Size of the output; 0 for the pooled features.
        global_pool: How timm's classifier pools, "" for the map itself.
        output_stride: Only 32.
        drop_rate: Dropout before the classifier.
        device: Where to build the parameters.
        dtype: Their type.

    Raises:
        ValueError: For sizes, names or a stride that do not fit.

    SAN (CVPR 2020, arXiv 2004.13621), patch-wise; ACmix (CVPR 2022, arXiv 2111.14556). The maps of
    the five stages have strides 2 to 32, rounded down as published; the first is no feature.
    Departures: one-pixel maps reflect too, so that 32 pixels are enough. For ACmix in SAN there is
    no published code: the paper's counts are 0.1 to 0.4 M parameters higher than those of this
    reading. Everything starts as torch starts it, ACmix's group convolution at the shifts.
    """

    def __init__(
        self,
        config: SANConfig,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(config)
        check_sizes(in_chans, num_classes, drop_rate)  # before a stem is built of them
        only_stride_32("SAN", output_stride)
        widths = config.embed_dims
        with placed(device):
            super().__init__(
                stem=_stem(in_chans, widths[0]),
                stages=_stages(config),
                norm=nn.Identity(),  # the last stage ends in its own
                widths=widths,
                reductions=(2, 4, 8, 16, 32),
                first_map=1,  # maps have strides 4 to 32, as in every family
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                drop_rate=drop_rate,
            )
        self.config = config
        self.to(dtype=dtype)

    def no_weight_decay(self) -> set[str]:
        """Return the names of alpha and beta, which weigh two paths and should not shrink."""
        return named_parameters_called(self, "alpha", "beta")


def _stem(in_chans: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, width, 1, bias=False), *_norm(width))


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _stages(config: SANConfig) -> list[Stage]:
    widths = config.embed_dims
    rates = drop_path_rates(config.drop_path_rate, config.depths)
    stages = []
    for i, width in enumerate(widths):
        before = widths[max(i - 1, 0)]
        down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(before, width, 1, bias=False))
        blocks = [
            SANBlock(
                width,
                window_size=config.window_sizes[i],
                mix=config.mix,
                shift=config.shift,
                kernel_size=config.kernel_size,
                drop_path=rate,
            )
            for rate in rates[i]
        ]
        stages.append(Stage(down, blocks, norm=nn.Sequential(*_norm(width))))
    return stages


def _check(config: SANConfig) -> None:
    check_rate("drop_path_rate", config.drop_path_rate)
    lengths = [len(config.embed_dims), len(config.depths), len(config.window_sizes)]
    if lengths != [5, 5, 5]:
        raise ValueError(
            "embed_dims, depths and window_sizes must each name 5 stages, got "
            f"{config.embed_dims}, {config.depths}, {config.window_sizes}"
        )
    wrong = [width for width in config.embed_dims if width < 1 or width % NARROWEST]
    if wrong:
        raise ValueError(f"embed_dims must be multiples of {NARROWEST}, got {wrong[0]}")


def _cfg(name: str) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="stem.0",
        classifier="head.fc",
        image_size=32 if "nano" in name else 224,
        interpolation="bilinear",
    )


_PUBLISHED_NAMES: Renames = (
    (r"conv_in\.(.*)", r"stem.0.\1"),
    (r"bn_in\.(.*)", r"stem.1.\1"),
    (r"conv(\d)\.(.*)", r"stages.\1.downsample.1.\2"),
    (r"bn(\d)\.(.*)", r"stages.\1.norm.0.\2"),
    (r"layer(\d)\.(\d+)\.sam\.conv_w\.(.*)", r"stages.\1.blocks.\2.mixer.attn.mlp.\3"),
    (r"layer(\d)\.(\d+)\.sam\.(.*)", r"stages.\1.blocks.\2.mixer.\3"),
    (r"layer(\d)\.(\d+)\.bn([12])\.(.*)", r"stages.\1.blocks.\2.norm\3.\4"),
    (r"layer(\d)\.(\d+)\.conv\.(.*)", r"stages.\1.blocks.\2.expand.\3"),
    (r"fc\.(.*)", r"head.fc.\1"),
)

register_notrace_module(SANBlock)  # it looks at sizes: torch.fx takes it as one node
add_names(SAN, lambda model: _PUBLISHED_NAMES)
register_family(
    __name__,
    SAN,
    VARIANTS,
    {name: _cfg(name) for name in VARIANTS},
    feature_cfg={"feature_cls": "getter", "flatten_sequential": True},
    checkpoint_filter=checkpoint_filter,
)
