"""ResNet with ACmix in place of the 3x3 convolution of every block (arXiv 2111.14556)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models import register_notrace_module
from timm.models.resnet import Bottleneck, ResNet

from convattn.layers.acmix import ACmix
from convattn.models._backbone import check_sizes, placed
from convattn.models._official import checkpoint_filter
from convattn.models._pretrained import pretrained_cfg
from convattn.models._registry import register_family
from convattn.ops._checks import check_rate


@dataclass(frozen=True)
class ACmixResNetConfig:
    """Everything that tells one from another; each field is also a keyword of its models."""

    layers: tuple[int, ...]  # blocks of the stages
    channels: tuple[int, ...] = (64, 128, 256, 512)  # a quarter of the stages' widths
    stem_width: int = 0  # of three 3x3 convolutions ending in twice that; 0 for one 7x7 to 64
    num_heads: int | None = None  # of ACmix, as the rest: None for 4
    window_size: int | None = None  # None for 7
    kernel_size: int = 3
    attention: str = "sliding_window"
    mix: str = "learned"
    shift: str = "learned"
    drop_path_rate: float = 0.0


VARIANTS: dict[str, ACmixResNetConfig] = {
    "acmix_resnet26": ACmixResNetConfig(layers=(1, 2, 4, 1)),
    "acmix_resnet38": ACmixResNetConfig(layers=(2, 3, 5, 2)),
    "acmix_resnet50": ACmixResNetConfig(layers=(3, 4, 6, 3)),
    "acmix_resnet_nano": ACmixResNetConfig(
        layers=(1, 1, 1, 1), channels=(16, 32, 48, 64), stem_width=16
    ),
}


class ACmixBottleneck(Bottleneck):
    """timm's bottleneck block with ACmix, of the same stride and dilation, as its ``conv2``.

    Args:
        *args: As timm's.
        acmix: Keyword arguments of `ACmix`.
        **kwargs: As timm's, by name; ``cardinality`` can only be 1.
    """

    def __init__(self, *args: Any, acmix: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        conv = self.conv2
        if conv.groups != 1:
            raise ValueError(f"ACmix has no groups: cardinality must be 1, got {conv.groups}")
        with placed(conv.weight.device):
            mixer = ACmix(
                conv.in_channels,
                conv.out_channels,
                stride=conv.stride[0],
                dilation=conv.dilation[0],
                **acmix,
            )
        self.conv2 = mixer.to(conv.weight.dtype)  # type: ignore[assignment]  # timm's is a Conv2d


class ACmixResNet(ResNet):
    """timm's ResNet of bottlenecks whose 3x3 convolution is ACmix, in all blocks.

    Args:
        config: The variant.
        in_chans: Channels of the image.
        num_classes: Size of the output; 0 for the pooled features.
        global_pool: How timm's classifier pools, "" for the map itself.
        output_stride: 8, 16 or 32; where a stage keeps its resolution, ACmix is dilated instead.
        drop_rate: Dropout before the classifier.
        zero_init_last: Whether each block starts as the identity.
        device: Where to build the parameters.
        dtype: Their type.

    Raises:
        ValueError: For sizes or names that do not fit.

    ACmix (CVPR 2022, arXiv 2111.14556). Departures from the published code: the group convolution
    keeps its start at the shifts, which the published model overwrites; the dilation is used; the
    last norm of a block starts at zero, as timm's ResNets do.
    """

    def __init__(
        self,
        config: ACmixResNetConfig,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        zero_init_last: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_chans, num_classes, drop_rate)
        check_rate("drop_path_rate", config.drop_path_rate)
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        acmix = {
            "num_heads": config.num_heads,
            "window_size": config.window_size,
            "kernel_size": config.kernel_size,
            "attention": config.attention,
            "mix": config.mix,
            "shift": config.shift,
        }
        with placed(device):
            super().__init__(
                ACmixBottleneck,  # type: ignore[arg-type]  # the class, not an instance
                config.layers,
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                output_stride=output_stride,
                channels=config.channels,
                drop_rate=drop_rate,
                drop_path_rate=config.drop_path_rate,
                zero_init_last=zero_init_last,
                block_args={"acmix": acmix},
                stem_type="deep" if config.stem_width else "",
                stem_width=config.stem_width or 64,
            )
        self.in_chans = in_chans
        self.to(dtype=dtype)

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Start as timm's ResNet does, and ACmix's group convolutions at the shifts."""
        super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if isinstance(module, ACmix):
                module.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Return the names of alpha and beta, which weigh two paths and should not shrink."""
        leaves = ("alpha", "beta")
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in leaves}


def _cfg(name: str, config: ACmixResNetConfig) -> dict[str, Any]:
    return pretrained_cfg(
        first_conv="conv1.0" if config.stem_width else "conv1",
        classifier="fc",
        image_size=32 if "nano" in name else 224,
    )


register_notrace_module(ACmix)  # it looks at sizes: torch.fx takes it as one node
register_family(
    __name__,
    ACmixResNet,
    VARIANTS,
    {name: _cfg(name, config) for name, config in VARIANTS.items()},
    feature_cfg={"out_indices": (1, 2, 3, 4)},
    checkpoint_filter=checkpoint_filter,
)
