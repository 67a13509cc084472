"""ResNets with ACmix or X-volution in place of 3x3 convolutions, and the plain baselines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timm.models import register_notrace_module
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from convattn.checks import check_choice
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.foldable import may_fold, may_fold_inside
from convattn.layers.folding import fold_norm, fold_pair, fold_sequence, left_of
from convattn.layers.xvolution import XVolution
from convattn.models._backbone import Backbone, check_pool, check_stages
from convattn.models._pretrained import pretrained_cfg
from convattn.models._pyramid import as_list
from convattn.models._registry import register_family, with_single_paths
from convattn.models.official import checkpoint_filter


class FoldingBasicBlock(BasicBlock):
    """timm's basic block; `reparameterize` folds its norms into the layers before them."""

    def reparameterize(self) -> None:
        """Fold both norms and the norm of the shortcut, exactly and permanently."""
        _fold_norms(self)


class FoldingBottleneck(Bottleneck):
    """timm's bottleneck; `reparameterize` folds its norms into the layers before them."""

    def reparameterize(self) -> None:
        """Fold the three norms and the norm of the shortcut, exactly and permanently."""
        _fold_norms(self)


# Each block class, and the names of its first 3x3 convolution and of the norm after it.
BLOCKS = {
    "bottleneck": (FoldingBottleneck, "conv2", "bn2"),
    "basic": (FoldingBasicBlock, "conv1", "bn1"),
}


@dataclass(frozen=True)
class ResNetConfig:
    """The settings of a variant; each field is a keyword argument of the models."""

    layers: tuple[int, ...]  # blocks of the stages
    channels: tuple[int, ...] = (64, 128, 256, 512)  # of the 3x3 convolutions
    block: str = "bottleneck"  # or "basic"
    stem_width: int = 0  # three 3x3 convolutions, to twice this width; 0 for one 7x7 to 64
    drop_path_rate: float = 0.0
    zero_init_last: bool = True  # whether each block is initialized to the identity


@dataclass(frozen=True)
class ACmixResNetConfig(ResNetConfig):
    """A ResNet, and the arguments of its `ACmix`."""

    num_heads: int | None = None  # None for 4, or if the attention has no heads
    window_size: int | None = None  # None for 7, or if the attention has no windows
    kernel_size: int = 3
    attention: str = "sliding_window"
    mix: str = "learned"
    shift: str = "learned"


@dataclass(frozen=True)
class XVolutionResNetConfig(ResNetConfig):
    """A ResNet, the stages with `XVolution`, and the arguments of `XVolution`."""

    stages: int | tuple[int, ...] = (3,)  # counted from 1
    attention: str = "pssa"  # or "sa"
    num_heads: int = 4
    distance: int | None = None  # distance between displacements of "pssa"; None for the dilation
    weighting: bool = True


_LAYERS = {"26": (1, 2, 4, 1), "38": (2, 3, 5, 2), "50": (3, 4, 6, 3)}
_NANO: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "channels": (16, 32, 48, 64),
    "stem_width": 16,
}

BASELINES: dict[str, ResNetConfig] = {
    **{f"baseline_resnet{n}": ResNetConfig(layers=layers) for n, layers in _LAYERS.items()},
    "baseline_resnet_nano": ResNetConfig(**_NANO),
}
VARIANTS: dict[str, ACmixResNetConfig] = with_single_paths(
    {
        **{f"acmix_resnet{n}": ACmixResNetConfig(layers=layers) for n, layers in _LAYERS.items()},
        "acmix_resnet_nano": ACmixResNetConfig(**_NANO),
    },
    "mix",
    conv="convolution",
    attn="attention",
)
XVOLUTIONS: dict[str, XVolutionResNetConfig] = {
    "xvolution_resnet34": XVolutionResNetConfig(layers=(3, 4, 6, 3), block="basic"),
    "xvolution_resnet50": XVolutionResNetConfig(layers=(3, 4, 6, 3)),
    "xvolution_resnet_nano": XVolutionResNetConfig(**_NANO),
}


class BaselineResNet(Backbone, ResNet):
    """The baseline: timm's ResNet with convolutions, in the sizes of the papers.

    Arguments and errors are those of `Backbone`.

    Deep residual learning (CVPR 2016, arXiv 1512.03385), with the stride in the 3x3 convolution, as
    in torchvision. The state dict of ``baseline_resnet50`` is that of timm's ``resnet50``. The
    features are the maps of the four stages, numbered from 0 as in every family; timm's ResNets
    count the map of the stem as well.
    """

    output_strides = (32, 16, 8)
    not_decayed = ("alpha", "beta")

    @staticmethod
    def check(config: ResNetConfig) -> None:
        """Raise unless the sizes and names are valid."""
        check_choice("block", config.block, BLOCKS)
        check_stages(config, 4, "layers", "channels")

    def build(self, config: ResNetConfig, global_pool: str | None, output_stride: int) -> None:
        """Build timm's ResNet, insert the operators of the family, and initialize the weights."""
        pool = self._usual_pool() if global_pool is None else global_pool
        check_pool(pool, self.num_classes, self.pools)
        ResNet.__init__(
            self,
            BLOCKS[config.block][0],  # type: ignore[arg-type]  # the class, not an instance
            config.layers,
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            global_pool=pool,
            output_stride=output_stride,
            channels=config.channels,
            drop_rate=self.drop_rate,
            drop_path_rate=config.drop_path_rate,
            zero_init_last=config.zero_init_last,
            stem_type="deep" if config.stem_width else "",
            stem_width=config.stem_width or 64,
        )
        if self.put_operators(config):
            self.init_weights(config.zero_init_last)
        self.feature_info = self.feature_info[1:]  # without the map of the stem

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final map and the maps of chosen stages; see `Pyramid`."""
        return super().forward_intermediates(
            x, _after_the_stem(indices), norm, stop_early, output_fmt, intermediates_only
        )

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, and the head; see `Pyramid`."""
        taken = super().prune_intermediate_layers(_after_the_stem(indices), prune_norm, prune_head)
        chosen = [i - 1 for i in taken]
        if max(chosen) < 3:
            self.num_features = self.feature_info[max(chosen)]["num_chs"]
            self._count_pooled()
        return chosen

    def _pooling(self) -> Any:
        return self.global_pool

    def _put_classifier(self, num_classes: int, global_pool: str) -> None:
        ResNet.reset_classifier(self, num_classes, global_pool)

    def reparameterize(self) -> None:
        """Fold the norms of the stem into its convolutions, exactly and permanently.

        The blocks fold their own norms, so no batch norm remains.
        """
        last: nn.Module = self.conv1
        if isinstance(last, nn.Sequential):
            fold_sequence(last)
            if not may_fold(last):
                return
            last = last[-1]
        if may_fold_inside(self, self.bn1) and fold_norm(last, self.bn1):
            self.bn1 = left_of(self.bn1)

    def put_operators(self, config: Any) -> bool:
        """Replace convolutions by the operator of the family; return whether it has one."""
        return False

    def stage_blocks(self, *stages: int) -> Iterator[nn.Module]:
        """Yield the blocks of the given stages, counted from 1."""
        for stage in stages:
            yield from self.get_submodule(f"layer{stage}").children()


class ACmixResNet(BaselineResNet):
    """A ResNet in which ACmix replaces the first 3x3 convolution of every block.

    Arguments and errors are those of `Backbone`.

    ACmix (CVPR 2022, arXiv 2111.14556). Departures from the published code: the group convolution
    is initialized to the shifts, which the published model overwrites; the dilation is used; the
    scale of the last norm of a block is initialized to zero, as in timm's ResNets.
    """

    def put_operators(self, config: ACmixResNetConfig) -> bool:
        """Replace the first 3x3 convolution of every block by ACmix."""
        name = BLOCKS[config.block][1]
        for block in self.stage_blocks(1, 2, 3, 4):
            conv = _conv_of(block, name)
            mixer = ACmix(
                conv.in_channels,
                conv.out_channels,
                num_heads=config.num_heads,
                window_size=config.window_size,
                kernel_size=config.kernel_size,
                attention=config.attention,
                mix=config.mix,
                shift=config.shift,
                stride=conv.stride[0],
                dilation=conv.dilation[0],
            )
            setattr(block, name, mixer)
        return True

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialize as timm's ResNet, and ACmix's group convolutions with the shifts."""
        super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if isinstance(module, ACmix):
                module.reset_parameters()


class XVolutionResNet(BaselineResNet):
    """A ResNet in which X-volution replaces the first 3x3 convolution of blocks of some stages.

    X-volution has a batch norm in its convolution branch and one in its attention branch. The first
    replaces the norm that followed the convolution, which becomes an identity. The scale of the
    second is initialized to zero. So the initial outputs equal those of a ResNet with the same
    weights, and timm's loader reads a ResNet's file:
    ``create_model(name, pretrained=True, pretrained_cfg_overlay={"file": PATH})``. The attention
    branch, which is not in the file, keeps its initial weights.

    Arguments and errors are those of `Backbone`.

    X-volution (2021, arXiv 2106.02253). No code was published. Our choices are those of
    `XVolution`; stages are ResNet's four, counted from 1, and the third is the default.
    """

    def put_operators(self, config: XVolutionResNetConfig) -> bool:
        """Replace the first 3x3 convolution and norm of blocks in the chosen stages."""
        _, name, norm = BLOCKS[config.block]
        stages = {config.stages} if isinstance(config.stages, int) else set(config.stages)
        if not stages or not stages <= {1, 2, 3, 4}:
            raise ValueError(f"stages are some of 1, 2, 3, 4, such as (3,), got {config.stages}")
        for block in self.stage_blocks(*stages):
            conv = _conv_of(block, name)
            mixer = XVolution(
                conv.in_channels,
                conv.out_channels,
                stride=conv.stride[0],
                dilation=conv.dilation[0],
                num_heads=config.num_heads,
                attention=config.attention,
                distance=config.distance,
                weighting=config.weighting,
            )
            setattr(block, name, mixer)
            setattr(block, norm, nn.Identity())
        return True


def _fold_norms(block: nn.Module) -> None:
    for i in ("1", "2", "3"):
        if hasattr(block, f"conv{i}"):
            fold_pair(block, f"conv{i}", f"bn{i}")
    if isinstance(block.downsample, nn.Module):
        fold_sequence(block.downsample)


def _after_the_stem(indices: int | list[int] | None) -> list[int]:
    """Return the numbers of these stages in timm's ResNet, where the stem is 0."""
    chosen, _ = feature_take_indices(4, as_list(indices))
    return [i + 1 for i in chosen]


def _conv_of(block: nn.Module, name: str) -> nn.Conv2d:
    conv = block.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _from_resnet(state: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Rename a ResNet's weights to X-volution's; the attention branch keeps its weights."""
    renamed = checkpoint_filter(state, model)
    for prefix, module in model.named_modules():
        if not isinstance(module, XVolution) or f"{prefix}.weight" not in renamed:
            continue
        renamed[f"{prefix}.conv.weight"] = renamed.pop(f"{prefix}.weight")
        norm = prefix.replace("conv", "bn")
        for key in [key for key in renamed if key.startswith(f"{norm}.")]:
            renamed[f"{prefix}.conv_norm.{key.removeprefix(f'{norm}.')}"] = renamed.pop(key)
        own = {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
        renamed = {**own, **renamed}
    return renamed


def _cfgs(configs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: pretrained_cfg(
            first_conv="conv1.0" if config.stem_width else "conv1",
            classifier="fc",
            image_size=32 if "nano" in name else 224,
        )
        for name, config in configs.items()
    }


for _operator in (ACmix, XVolution):
    register_notrace_module(_operator)  # one node each in torch.fx: they read sizes
for _class, _configs, _filter in (
    (BaselineResNet, BASELINES, checkpoint_filter),
    (ACmixResNet, VARIANTS, checkpoint_filter),
    (XVolutionResNet, XVOLUTIONS, _from_resnet),
):
    register_family(
        __name__,
        _class,
        _configs,
        _cfgs(_configs),
        feature_cfg={},
        checkpoint_filter=_filter,
    )
