"""GLNet: the pyramid of GLMix and attention blocks (arXiv 2411.14429).

``NAME_conv`` and ``NAME_attn`` are ablations: GLMix blocks with only the local or only the global
branch. The attention blocks of the "hybrid" and "mha" stages do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from timm.layers import ClassifierHead
from timm.models import register_notrace_module
from torch import Tensor, nn

from convattn.checks import check_choice
from convattn.layers.attention.block import AttentionBlock
from convattn.layers.foldable import attachment, may_fold_inside
from convattn.layers.folding import channel_affine
from convattn.layers.glmix import GLMix, GLMixBlock
from convattn.models._backbone import check_stages
from convattn.models._pretrained import pretrained_cfg
from convattn.models._pyramid import Parts, Pyramid, Stage
from convattn.models._registry import register_family, with_single_paths
from convattn.models._start import start_narrow
from convattn.models.official import Renames, add_names, checkpoint_filter

BLOCKS = ("glmix", "hybrid", "mha")
STEMS = ("conv", "patch")


@dataclass(frozen=True)
class GLNetConfig:
    """The settings of a variant; each field is a keyword argument of the models."""

    embed_dims: tuple[int, ...]  # channels of the stages
    depths: tuple[int, ...]  # blocks of the stages
    blocks: tuple[str, ...] = ("glmix", "glmix", "hybrid", "mha")  # kind of blocks of each stage
    stem: str = "conv"  # overlapping 3x3 convolutions with norms; or "patch", non-overlapping
    pos_embed: bool = True  # depth-wise 3x3 position embedding in each block
    mlp_ratio: float = 3.0
    mlp_dwconv: bool = True  # depth-wise 3x3 convolution in each FFN
    head_dim: int = 32
    slots: int | tuple[int, int] = 64
    slot_init: str = "pooled"  # or "learned"
    clustering: str = "soft"  # or "kmeans", "static"
    branches: str = "parallel"  # or "sequential", "local", "global"
    kernel_size: int = 5  # of the local branch
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    token_labelling: bool = False  # whether a second classifier works on every position


_STL = GLNetConfig(
    embed_dims=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    blocks=("glmix", "glmix", "glmix", "mha"),
    stem="patch",
    pos_embed=False,
    mlp_ratio=4.0,
    mlp_dwconv=False,
    drop_path_rate=0.1,
)
_4G = GLNetConfig(embed_dims=(64, 128, 256, 512), depths=(4, 4, 18, 4), drop_path_rate=0.15)
_9G = replace(_4G, embed_dims=(96, 192, 384, 768), drop_path_rate=0.3)
_16G = replace(_4G, embed_dims=(128, 256, 512, 1024), drop_path_rate=0.4, layer_scale=1e-4)

_PARALLEL: dict[str, GLNetConfig] = {
    "glnet_stl": _STL,
    "glnet_stl_paramslot": replace(_STL, slot_init="learned"),
    "glnet_4g": _4G,
    "glnet_9g": _9G,
    "glnet_16g": _16G,
    "glnet_4g_tklb": replace(_4G, token_labelling=True, drop_path_rate=0.1),
    "glnet_9g_tklb": replace(_9G, token_labelling=True, drop_path_rate=0.1),
    "glnet_nano": GLNetConfig(embed_dims=(32, 64, 96, 128), depths=(1, 1, 2, 1), slots=16),
}
VARIANTS: dict[str, GLNetConfig] = with_single_paths(
    _PARALLEL, "branches", conv="local", attn="global"
)


class GLNet(Pyramid):
    """Four stages of GLMix blocks, which combine a convolution and attention between slots.

    ``logits = Linear(mean(BN(stages(stem(x)))))``; with token labelling
    ``logits + 0.5 * max over positions of Linear'(BN(...))``, in training and in evaluation, so
    that every parameter has a gradient; `forward_token_labels` returns both kinds of logits.

    Arguments and errors are those of `Backbone`.

    GLMix (NeurIPS 2024, arXiv 2411.14429). Departures from the published code: ``num_features`` is
    a number, the temperatures have shape (1,), images may have any size from 32 pixels.
    """

    not_decayed = ("slots", "slot_scale")
    folded = False  # whether `forward` applies the norm after the mean

    @staticmethod
    def check(config: GLNetConfig) -> None:
        """Raise unless the sizes and names are valid."""
        check_choice("stem", config.stem, STEMS)
        for kind in config.blocks:
            check_choice("block", kind, BLOCKS)
        check_stages(config, 4, "embed_dims", "depths", "blocks")

    def parts(self, config: GLNetConfig) -> Parts:
        """Return the parts of the pyramid."""
        widths = config.embed_dims
        return Parts(
            stem=_stem(config, self.in_chans),
            stage=partial(_stage, config),
            norm=nn.BatchNorm2d(widths[-1]),
            widths=widths,
            depths=config.depths,
        )

    def start(self, module: nn.Module) -> None:
        """Initialize weights with a normal distribution of small variance, biases with zero."""
        start_narrow(module)

    def reparameterize(self) -> None:
        """Fold the norms of the stem into its convolutions, and apply the last norm after the mean.

        In evaluation a batch norm is affine per channel, so it commutes with the mean: ``forward``
        norms the pooled vector instead of the map. ``forward_features`` and `forward_intermediates`
        still return normed maps.
        """
        super().reparameterize()
        affine = channel_affine(self.norm)
        if affine is not None:
            self.norm = affine
            pools = (self.head, *self.head.global_pool.modules())
            known = type(self.head) is ClassifierHead and not any(map(attachment, pools))
            self.folded = known and may_fold_inside(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_chans, H, W)."""
        means = self.head.global_pool.pool_type == "avg" and self.token_head is None
        if not (self.folded and means):
            return super().forward(x)
        self._check_images(x)
        x = self.stages(self.stem(x)).mean((2, 3), keepdim=True)
        return self.forward_head(self.norm(x))  # the mean of one pixel is that pixel

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of a normed map, or the input of the classifier."""
        logits = super().forward_head(x, pre_logits=pre_logits)
        if self.token_head is not None and not pre_logits:
            logits = logits + 0.5 * self._position_logits(x).amax((2, 3))
        return logits

    def forward_token_labels(
        self, x: Tensor, box: tuple[int, int, int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of the images and of each position, for the token-labelling loss.

        Args:
            x: images (B, in_chans, H, W).
            box: the box of MixToken, (top, left, bottom, right) on the grid of the last map, bottom
                and right excluded. Inside the box the stem's output is taken from the batch in
                reverse order, and the position logits are swapped back.

        Returns:
            Logits (B, num_classes) of the mixed images; position logits (B, num_classes, h, w).

        Raises:
            ValueError: the model has no position head, or the box leaves the grid of the last map.
        """
        if self.token_head is None:
            raise ValueError("this model has no position head; build it with token_labelling=True")
        x = self.stem(x)
        if box is not None:
            x = _swap(x, box, scale=8)
        x = self.norm(self.stages(x))
        positions = self._position_logits(x)
        if box is not None:
            _check_box(box, positions.shape[-2:])
            positions = _swap(positions, box)
        return super().forward_head(x), positions

    def set_slot_grid(self, grid: tuple[int, int]) -> None:
        """Set the grid (rows, columns) on which every block pools its slots.

        Raises:
            ValueError: the model has no pooled slots.
        """
        mixers = [m for m in self.modules() if isinstance(m, GLMix) and m.slot_grid is not None]
        if not mixers:
            raise ValueError(f"slot grid {grid} needs pooled slots; this model has none")
        for mixer in mixers:
            mixer.slot_grid = grid

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        super()._set_head(num_classes, global_pool)
        has_token_head = self.config.token_labelling and num_classes > 0
        self.token_head = nn.Linear(self.num_features, num_classes) if has_token_head else None

    def _heads(self) -> list[nn.Module]:
        return [head for head in (self.head, self.token_head) if head is not None]

    def _position_logits(self, x: Tensor) -> Tensor:
        assert self.token_head is not None
        return self.token_head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _stem(config: GLNetConfig, in_chans: int) -> nn.Module:
    width = config.embed_dims[0]
    if config.stem == "patch":
        return nn.Sequential(nn.Conv2d(in_chans, width, 4, stride=4), nn.BatchNorm2d(width))
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1),
        nn.BatchNorm2d(width // 2),
        nn.GELU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
    )


def _transition(config: GLNetConfig, width: int, next_width: int) -> nn.Module:
    if config.stem == "patch":
        return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, next_width, 2, stride=2))
    return nn.Sequential(
        nn.Conv2d(width, next_width, 3, stride=2, padding=1), nn.BatchNorm2d(next_width)
    )


def _stage(config: GLNetConfig, index: int, drop_path: list[float]) -> Stage:
    width, kind = config.embed_dims[index], config.blocks[index]
    down = _transition(config, config.embed_dims[index - 1], width) if index else nn.Identity()
    return Stage(down, [_block(config, kind, width, j, rate) for j, rate in enumerate(drop_path)])


def _block(
    config: GLNetConfig, kind: str, width: int, position: int, drop_path: float
) -> nn.Module:
    shared: dict[str, Any] = {
        "head_dim": config.head_dim,
        "pos_embed": config.pos_embed,
        "mlp_ratio": config.mlp_ratio,
        "mlp_dwconv": config.mlp_dwconv,
        "layer_scale": config.layer_scale,
        "drop_path": drop_path,
    }
    if kind == "mha" or (kind == "hybrid" and position % 2):
        return AttentionBlock(width, **shared)
    return GLMixBlock(
        width,
        slots=config.slots,
        slot_init=config.slot_init,
        clustering=config.clustering,
        branches=config.branches,
        kernel_size=config.kernel_size,
        **shared,
    )


def _check_box(box: tuple[int, int, int, int], size: Sequence[int]) -> None:
    top, left, bottom, right = box
    if not (0 <= top <= bottom <= size[0] and 0 <= left <= right <= size[1]):
        raise ValueError(
            f"box must be (top, left, bottom, right) on the final grid of {tuple(size)}, got {box}"
        )


def _swap(x: Tensor, box: tuple[int, int, int, int], scale: int = 1) -> Tensor:
    """Replace the box of each map by the box of the batch in reverse order."""
    top, left, bottom, right = (scale * side for side in box)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x.flip(0)[..., top:bottom, left:right]
    return mixed


def _cfg(name: str, config: GLNetConfig) -> dict[str, Any]:
    heads = ("head.fc", "token_head") if config.token_labelling else "head.fc"
    size = 32 if "nano" in name else 224
    return pretrained_cfg(first_conv="stem.0", classifier=heads, image_size=size)


_CONV_STEM = {1: 0, 2: 1, 4: 3, 5: 4}  # the first module of the published stem has no weights
_PATCH_STEM = {0: 0, 1: 1}


def _published_names(model: nn.Module) -> Renames:
    assert isinstance(model, GLNet)
    stem = _PATCH_STEM if model.config.stem == "patch" else _CONV_STEM
    return (
        *((rf"downsample_layers\.0\.{i}\.(.*)", rf"stem.{j}.\1") for i, j in stem.items()),
        (r"downsample_layers\.(\d+)\.(.*)", r"stages.\1.downsample.\2"),
        (r"tklb_aux_head\.(.*)", r"token_head.\1"),
        (r"head\.(weight|bias)", r"head.fc.\1"),
    )


for _block_class in (GLMixBlock, AttentionBlock):
    register_notrace_module(_block_class)  # one node in torch.fx: forward reads sizes
add_names(GLNet, _published_names)
register_family(
    __name__,
    GLNet,
    VARIANTS,
    {name: _cfg(name, config) for name, config in VARIANTS.items()},
    feature_cfg={"feature_cls": "getter", "flatten_sequential": True},
    checkpoint_filter=checkpoint_filter,
)
