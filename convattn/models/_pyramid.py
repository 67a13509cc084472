"""The base class of backbones with a stem, stages, a norm and a classifier, as timm uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convattn.checks import check_map, check_positive
from convattn.layers.folding import fold_sequence
from convattn.models._backbone import Backbone, check_pool, placed
from convattn.ops.dispatch import checkpoint_contexts


class Stage(nn.Module):
    """A downsampling layer, the blocks of the stage, and an optional norm.

    Args:
        downsample: applied first; an identity if the stem has the stage's width and resolution.
        blocks: modules from (B, C, H, W) to the same shape.
        norm: applied last; None for none.
    """

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm
        self.grad_checkpointing = False

    def reparameterize(self) -> None:
        """Fold the batch norms of ``downsample`` into its convolutions, permanently."""
        fold_sequence(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C, H', W')."""
        x = self.downsample(x)
        if self.recomputes():
            for block in self.blocks:
                x = recompute(block, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def recomputes(self) -> bool:
        """Return whether the blocks use gradient checkpointing in this forward pass."""
        return self.grad_checkpointing and torch.is_grad_enabled()


def recompute(block: nn.Module, *inputs: Any) -> Any:
    """Call a block with gradient checkpointing; the backward pass uses the same paths."""
    contexts: dict[str, Any] = (
        {} if torch.compiler.is_compiling() else {"context_fn": checkpoint_contexts}
    )
    return checkpoint(block, *inputs, use_reentrant=False, **contexts)


@dataclass
class Parts:
    """The modules and sizes from which `Pyramid` builds a variant of a family."""

    stem: nn.Module  # from the image to the input of the first stage
    stage: Callable[[int, list[float]], Stage]  # from an index and the drop-path rate of each block
    norm: nn.Module  # applied to the last map
    widths: Sequence[int]  # channels of the stages
    depths: Sequence[int]  # blocks of the stages
    reductions: Sequence[int] = ()  # strides of the stages' maps; by default 4, 8, 16, ...
    first_map: int = 0  # stages before the first one whose map is a feature
    num_prefix_tokens: int = 0  # tokens before the positions in the output of `forward_features`


class Pyramid(Backbone):
    """`head(norm(stages(stem(x))))`, with a feature map after each stage.

    A family defines ``check`` and ``parts``, and defines ``start`` unless its weights have torch's
    initial values. A family whose stages return more than a map overrides ``forward_features``,
    ``_run`` and ``_split``. Arguments and errors are those of `Backbone`.
    """

    def parts(self, config: Any) -> Parts:
        """Return the parts of a variant, for images of ``self.in_chans`` channels."""
        raise NotImplementedError

    def start(self, module: nn.Module) -> None:
        """Initialize the weights of the model, or of a new classifier."""

    def build(self, config: Any, global_pool: str | None, output_stride: int) -> None:
        """Build the parts, then the classifier, and initialize their weights."""
        parts = self.parts(config)
        rates = drop_path_rates(config.drop_path_rate, parts.depths)
        reductions = parts.reductions or [4 * 2**i for i in range(len(parts.widths))]
        self.first_map = parts.first_map
        self.num_prefix_tokens = parts.num_prefix_tokens
        self.num_features = parts.widths[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width, "reduction": reduction, "module": f"stages.{i}"}
            for i, (width, reduction) in enumerate(zip(parts.widths, reductions, strict=True))
            if i >= parts.first_map
        ]
        self.stem = parts.stem
        self.stages = nn.Sequential(*(parts.stage(i, each) for i, each in enumerate(rates)))
        self.norm = parts.norm
        self._set_head(self.num_classes, self._usual_pool() if global_pool is None else global_pool)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize the weights as the family defines."""
        self.start(self)

    def reparameterize(self) -> None:
        """Fold the batch norms of the stem into its convolutions, exactly and permanently."""
        fold_sequence(self.stem)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normed map (B, num_features, H/32, W/32) of images (B, in_chans, H, W)."""
        self._check_images(x)
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of normed features, or the input of the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

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
        """Return the final features and the maps of chosen stages.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages to return: a list of at least one, the last n, or None for all.
            norm: whether the map and the token of the last stage are normed.
            stop_early: whether to leave out the stages after the last one returned; the final
                features are then that stage's map.
            output_fmt: only "NCHW".
            intermediates_only: whether to leave out the final features.
            return_prefix_tokens: whether to return pairs of a map and its class token (B, 1, C),
                which is zero before the stage that adds the token. A model without a class token
                returns maps only, like models of timm.

        Returns:
            ``(final, [map, ...])``, or the list alone.

        Raises:
            ValueError: another ``output_fmt``, empty ``indices``, or images of a wrong shape or
                dtype.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        self._check_images(x)
        count = len(self.stages) - self.first_map
        chosen, last = feature_take_indices(count, as_list(indices))
        final, pairs = self._run(x, self.first_map + (last + 1 if stop_early else count))
        pairs = pairs[self.first_map :]
        if len(pairs) == len(self.feature_info):  # the norm belongs to the last stage built
            final = self.norm(final)
            if norm:
                pairs[-1] = self._split(final, pairs[-1][0])
        pairs = [pairs[i] for i in sorted(set(chosen))]
        maps: list[Any] = [x for x, _ in pairs]
        if return_prefix_tokens and self.num_prefix_tokens:
            maps = [(x, _zeros(x) if tokens is None else tokens) for x, tokens in pairs]
        return maps if intermediates_only else (final, maps)

    def _check_images(self, x: Tensor) -> None:
        check_images(x, self.in_chans)

    def _run(self, x: Tensor, count: int) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """Return the output of ``count`` stages before the norm, and each stage's map and token."""
        x = self.stem(x)
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for i in range(count):
            x = self.stages[i](x)
            pairs.append((x, None))
        return x, pairs

    def _split(self, features: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split normed features into the map, of the size of ``like``, and the token or None."""
        return features, None

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, the norm and the head.

        Args:
            indices: stages to keep maps of: a list, or the last n.
            prune_norm: whether to remove the final norm; it is always removed with the last stage.
            prune_head: whether to remove the classifier; it is always removed with the last stage.

        Returns:
            The indices of the chosen stages; 0 is the first stage that has a feature map.
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
        """Return the linear layer that computes the logits."""
        return self.head.fc

    def _pooling(self) -> Any:
        """Return the module that pools before the classifier."""
        return self.head.global_pool

    def _put_classifier(self, num_classes: int, global_pool: str) -> None:
        """Replace the classifiers by new ones, initialized like the first ones."""
        like = next(self.stem.parameters())
        with placed(like.device):
            self._set_head(num_classes, global_pool)
        for head in self._heads():
            head.to(like.dtype).train(self.training)
            self.start(head)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        """Build the classifier."""
        check_pool(global_pool, num_classes, self.pools)
        self.head = self._make_head(num_classes, global_pool)

    def _heads(self) -> list[nn.Module]:
        """Return the classifiers that `_set_head` built."""
        return [self.head]

    def _make_head(self, num_classes: int, global_pool: str) -> ClassifierHead:
        """Return timm's pooling and classifier."""
        return ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=self.drop_rate
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of storing them."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for layer-wise learning rates: by stage, or by block."""
        by_block = [
            (r"^stages\.(\d+)\.(?:downsample|positions)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (
                r"^stages\.(\d+)\.norm",
                (99999,),
            ),  # timm's MATCH_PREV_GROUP: with the last block
            (r"^norm", (99999,)),
        ]
        by_stage = [(r"^stages\.(\d+)", None), (r"^norm", (99999,))]
        return {
            "stem": r"^(?:stem|stages\.0\.positions)",
            "blocks": by_stage if coarse else by_block,
        }


def as_list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    """Return a choice of stages in the form of timm; raise if it is empty."""
    if indices is None or isinstance(indices, int):
        return indices
    if len(indices) == 0:
        raise ValueError(
            "indices must name at least one stage, got []; use None for all, or n for the last n"
        )
    return list(indices)


@torch.fx.wrap  # one node in a graph of torch.fx
def check_images(x: Tensor, in_chans: int) -> None:
    """Raise unless ``x`` holds images (B, in_chans, H, W) in floating point."""
    check_map(x, "images")
    if x.shape[1] != in_chans:
        raise ValueError(
            f"images must have in_chans={in_chans} channels, got {x.shape[1]}; build the model "
            f"with in_chans={x.shape[1]} for these"
        )


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return each block's drop-path rate, by stage: from 0 at the first to ``rate`` at the last."""
    for depth in depths:
        check_positive("the depth of a stage", depth)
    total = sum(depths)
    rates = iter(rate * i / max(total - 1, 1) for i in range(total))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _zeros(x: Tensor) -> Tensor:
    """Return tokens (B, 1, C) of zeros for a map (B, C, H, W)."""
    return x.new_zeros(x.shape[0], 1, x.shape[1])
