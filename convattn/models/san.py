"""Patch-wise SAN, and SAN with ACmix (arXiv 2004.13621, 2111.14556)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from timm.layers import DropPath
from timm.models import register_notrace_module
from torch import Tensor, nn

from convattn.checks import check_map, check_rate
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.folding import fold_pair
from convattn.layers.one_node import OneNode
from convattn.models._backbone import check_stages
from convattn.models._pretrained import pretrained_cfg
from convattn.models._pyramid import Parts, Pyramid, Stage
from convattn.models._registry import register_family, with_single_paths
from convattn.models.official import Renames, add_names, checkpoint_filter

NARROWEST = 32  # the attention has a quarter of the channels, and 8 channels share weights


@dataclass(frozen=True)
class SANConfig:
    """The settings of a variant; each field is a keyword argument of the models."""

    depths: tuple[int, ...]  # blocks of the stages
    embed_dims: tuple[int, ...] = (64, 256, 512, 1024, 2048)  # channels of the stages
    window_sizes: tuple[int, ...] = (3, 7, 7, 7, 7)  # of the patches of the stages' attention
    mix: str = "attention"  # an argument of ACmix; "attention" is SAN
    shift: str = "learned"  # an argument of ACmix
    kernel_size: int = 3  # of the convolution in ACmix
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
        mix: argument of ACmix; with "attention" the block is that of SAN.
        shift: argument of ACmix.
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
        """Fold the norm after ACmix into ACmix, exactly, where ACmix can absorb a shift.

        The attention alone cannot absorb a shift: its weights do not sum to one. The first norm is
        not folded: its input is also the residual, and a ReLU follows.
        """
        fold_pair(self, "mixer", "norm2")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, dim, H, W)."""
        check_map(x, channels=self.dim)
        y = self.mixer(self.act(self.norm1(x)))
        y = self.expand(self.act(self.norm2(y)))
        return x + self.drop_path(y).to(x.dtype)


class SAN(Pyramid):
    """Five stages of residual blocks with patch-wise attention, or with ACmix around it.

    ``logits = Linear(mean(stages(ReLU(BN(W x)))))``; a stage is a 2x2 max-pool, a 1x1 convolution,
    its blocks, and ``ReLU(BN(x))``.

    Arguments and errors are those of `Backbone`.

    SAN (CVPR 2020, arXiv 2004.13621), patch-wise; ACmix (CVPR 2022, arXiv 2111.14556). The maps of
    the five stages have strides 2 to 32, and their sizes are rounded down as published; the map of
    the first stage is not a feature. Departure: reflection also pads maps of one pixel, so images
    may have 32 pixels. The code of SAN-ACmix is not published; in the paper it has 0.1 to 0.4 M
    more parameters. All weights have torch's initialization, but ACmix's group convolution is
    initialized to the shifts.
    """

    not_decayed = ("alpha", "beta")

    @staticmethod
    def check(config: SANConfig) -> None:
        """Raise unless the sizes are valid."""
        check_stages(config, 5, "embed_dims", "depths", "window_sizes")
        wrong = [width for width in config.embed_dims if width < 1 or width % NARROWEST]
        if wrong:
            raise ValueError(f"embed_dims must be multiples of {NARROWEST}, got {wrong[0]}")

    def parts(self, config: SANConfig) -> Parts:
        """Return the parts; the last stage contains its norm, so the final norm is an identity."""
        return Parts(
            stem=_stem(self.in_chans, config.embed_dims[0]),
            stage=partial(_stage, config),
            norm=nn.Identity(),
            widths=config.embed_dims,
            depths=config.depths,
            reductions=(2, 4, 8, 16, 32),
            first_map=1,  # the features have strides 4 to 32, as in every family
        )


def _stem(in_chans: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, width, 1, bias=False), *_norm(width))


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _stage(config: SANConfig, index: int, drop_path: list[float]) -> Stage:
    width, before = config.embed_dims[index], config.embed_dims[max(index - 1, 0)]
    down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(before, width, 1, bias=False))
    blocks = [
        SANBlock(
            width,
            window_size=config.window_sizes[index],
            mix=config.mix,
            shift=config.shift,
            kernel_size=config.kernel_size,
            drop_path=rate,
        )
        for rate in drop_path
    ]
    return Stage(down, blocks, norm=nn.Sequential(*_norm(width)))


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

register_notrace_module(SANBlock)  # one node in torch.fx: it reads sizes
add_names(SAN, lambda model: _PUBLISHED_NAMES)
register_family(
    __name__,
    SAN,
    VARIANTS,
    {name: _cfg(name) for name in VARIANTS},
    feature_cfg={"feature_cls": "getter", "flatten_sequential": True},
    checkpoint_filter=checkpoint_filter,
)
