"""What pyramid-shaped backbones share: a stem, stages, a norm, a classifier, timm's contract."""

# No "from __future__ import annotations": torch.fx copies those of forward() into its code, and
# TorchScript cannot read them there as strings.

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
import torch.fx
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from convattn.checks import check_choice, check_map, check_positive, check_rate
from convattn.layers.folding import fold_sequence

POOLS = ("avg", "max", "avgmax", "catavgmax", "")


class Stage(nn.Module):
    """A transition to the stage's width and resolution, its blocks, and where it has one a norm.

    Args:
        downsample: Applied first; an identity where the stem already did it.
        blocks: Modules from (B, C, H, W) to the same shape.
        norm: Applied last; None for none.
    """

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks: nn.Sequential | nn.ModuleList = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm
        self.grad_checkpointing = False

    def reparameterize(self) -> None:
        """Fold the batch norms of the transition into its convolutions, exactly and for good."""
        if isinstance(self.downsample, nn.Sequential):
            fold_sequence(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C, H', W')."""
        x = self.downsample(x)
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        if recompute and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class Pyramid(nn.Module):
    """`head(norm(stages(stem(x))))`, with a map after each stage on the way.

    A family gives the parts; this class gives timm's backbone contract. A family whose stages pass
    on more than a map overrides ``forward_features``, ``_run`` and ``_as_map``.

    Args:
        stem: From the image to the first stage's input.
        stages: One per resolution.
        norm: Applied to the last stage's map.
        widths: Channels of each stage.
        reductions: Strides of the stages' maps.
        first_map: Stages before the one whose map is the first that can be asked for.
        in_chans: Channels of the image.
        num_classes: Size of the output; 0 gives the pooled features.
        global_pool: How timm's classifier pools: "avg", "max", "avgmax", "catavgmax", or "" for
            the map itself, which no classifier takes.
        drop_rate: Dropout before the classifier.
        num_prefix_tokens: Tokens before the positions in what ``forward_features`` returns.
    """

    pools: tuple[str, ...] = POOLS

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        widths: Sequence[int],
        reductions: Sequence[int] = (4, 8, 16, 32),
        first_map: int = 0,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        num_prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(in_chans, num_classes, drop_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.num_prefix_tokens = num_prefix_tokens
        self.num_features = widths[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width, "reduction": reduction, "module": f"stages.{i}"}
            for i, (width, reduction) in enumerate(zip(widths, reductions, strict=True))
            if i >= first_map
        ]
        self.first_map = first_map
        self.stem = stem
        self.stages: nn.Sequential | nn.ModuleList = nn.Sequential(*stages)
        self.norm = norm
        self._set_head(num_classes, global_pool)

    def reparameterize(self) -> None:
        """Fold the batch norms of the stem into its convolutions, exactly and for good."""
        if isinstance(self.stem, nn.Sequential):
            fold_sequence(self.stem)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normed map (B, num_features, H/32, W/32) of images (B, in_chans, H, W)."""
        self._check_images(x)
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of a normed map, or what the classifier would see."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        # A family overrides this and not forward(), whose annotations torch.fx copies: see above.
        return self.forward_head(self.forward_features(x))

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        intermediates_only: Literal[False] = ...,
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        *,
        intermediates_only: Literal[True],
    ) -> list[Tensor]: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final map and the maps of chosen stages.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to return: a list of at least one, the last n, or None for all.
            norm: Whether the last stage's map among them is normed.
            stop_early: Whether to leave out the stages after the last one returned; the final map
                is then that stage's.
            output_fmt: Only "NCHW".
            intermediates_only: Whether to leave out the final map.

        Returns:
            ``(final, [map, ...])``, or the list alone.

        Raises:
            ValueError: For another ``output_fmt``, no ``indices``, or images that do not fit.
        """
        final, maps = self._intermediates(x, indices, norm, stop_early, output_fmt)
        return maps if intermediates_only else (final, maps)

    def _intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
    ) -> tuple[Tensor, list[Any]]:
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        self._check_images(x)
        count = len(self.stages) - self.first_map
        chosen, last = feature_take_indices(count, as_list(indices))
        final, maps = self._run(x, self.first_map + (last + 1 if stop_early else count))
        maps = maps[self.first_map :]
        if len(maps) == len(self.feature_info):  # the norm belongs to the last stage built
            final = self.norm(final)
            if norm:
                maps[-1] = self._as_map(final, maps[-1])
        return final, [maps[i] for i in sorted(set(chosen))]

    def _check_images(self, x: Tensor) -> None:
        check_images(x, self.in_chans)

    def _run(self, x: Tensor, count: int) -> tuple[Tensor, list[Any]]:
        """Return the features before the norm after ``count`` stages, and the map of each."""
        x = self.stem(x)
        maps: list[Any] = []
        for i in range(count):
            x = self.stages[i](x)
            maps.append(x)
        return x, maps

    def _as_map(self, features: Tensor, like: Any) -> Any:
        """Return the map in the normed features, of the size of the map ``like``."""
        return features

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, the norm and the head; return the rest.

        Args:
            indices: Stages to keep maps of: a list, or the last n.
            prune_norm: Whether to remove the final norm; it goes anyway with the last stage.
            prune_head: Whether to remove the classifier; it goes anyway with the last stage.

        Returns:
            The stages' indices, counted from the first that has a map.
        """
        count = len(self.stages) - self.first_map
        chosen, last = feature_take_indices(count, as_list(indices))
        shorter = last < count - 1
        self.stages = self.stages[: self.first_map + last + 1]
        if shorter:
            self.num_features = self.feature_info[last]["num_chs"]
            self.num_prefix_tokens = 0
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that gives the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place.

        Args:
            num_classes: Its size; 0 for none.
            global_pool: How it pools; as before if None, or the usual way where a classifier comes
                to a model that did not pool.

        Raises:
            ValueError: For a pooling that the model does not have, or "" with a classifier.
        """
        check_sizes(self.in_chans, num_classes, self.drop_rate)
        like = next(self.stem.parameters())
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        if global_pool is None and num_classes and not pool:
            pool = self._usual_pool()
        self.num_classes = num_classes
        with placed(like.device):
            self._set_head(num_classes, pool)
        self.head.to(like.dtype).train(self.training)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        check_pool(global_pool, num_classes, self.pools)
        self.head = self._make_head(num_classes, global_pool)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def _usual_pool(self) -> str:
        return "avg"

    def _make_head(self, num_classes: int, global_pool: str) -> ClassifierHead:
        return ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=self.drop_rate
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of storing them."""
        for stage in self.stages.children():
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for layer-wise learning rates: by stage, or by block."""
        by_block = [
            (r"^stages\.(\d+)\.(?:downsample|positions)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),  # timm: to the group before, the last block's
            (r"^norm", (99999,)),
        ]
        by_stage = [(r"^stages\.(\d+)", None), (r"^norm", (99999,))]
        return {
            "stem": r"^(?:stem|stages\.0\.positions)",
            "blocks": by_stage if coarse else by_block,
        }


def as_list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    """Return a choice of stages as timm takes it; raise if it is empty."""
    if indices is None or isinstance(indices, int):
        return indices
    if len(indices) == 0:
        raise ValueError(
            "indices must name at least one stage, got []; use None for all, or n for the last n"
        )
    return list(indices)


@torch.fx.wrap  # torch.fx takes it as one node
def check_images(x: Tensor, in_chans: int) -> None:
    """Raise unless ``x`` holds images (B, in_chans, H, W) in floating point."""
    check_map(x, "images")
    if x.shape[1] != in_chans:
        raise ValueError(
            f"images must have in_chans={in_chans} channels, got {x.shape[1]}; build the model "
            f"with in_chans={x.shape[1]} for these"
        )


def check_sizes(in_chans: int, num_classes: int, drop_rate: float) -> None:
    """Raise unless a model can have these; 0 classes are none."""
    check_positive("in_chans", in_chans)
    if num_classes != 0:
        check_positive("num_classes (0 for no classifier)", num_classes)
    check_rate("drop_rate", drop_rate)


def check_pool(global_pool: str, num_classes: int, pools: Sequence[str] = POOLS) -> None:
    """Raise unless a model of these poolings can pool so for so many classes."""
    check_choice("global_pool", global_pool, pools)
    if num_classes and not global_pool:
        raise ValueError(
            f"a classifier needs pooled features, got num_classes={num_classes} with "
            "global_pool=''; use global_pool='avg', or num_classes=0 for the features alone"
        )


@contextmanager
def placed(device: torch.device | str | None) -> Iterator[None]:
    """Build modules on a device, for those that take no ``device`` argument themselves."""
    if device is None:
        yield
        return
    with torch.device(device):
        yield


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return each block's drop-path rate, by stage: from 0 at the first to ``rate`` at the last."""
    for depth in depths:
        check_positive("the depth of a stage", depth)
    total = sum(depths)
    rates = iter(rate * i / max(total - 1, 1) for i in range(total))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def named_parameters_called(model: nn.Module, *leaves: str) -> set[str]:
    """Return the full names of the parameters that have one of these as their last part."""
    return {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] in leaves}


def only_stride_32(family: str, output_stride: int) -> None:
    """Raise for an ``output_stride`` that a family without dilated stages cannot give."""
    if output_stride != 32:
        raise ValueError(
            f"{family} has output stride 32 only, got output_stride={output_stride}; use "
            "features_only=True for maps at strides 4, 8 and 16, or a ResNet, which can be dilated"
        )
