"""GLMix: a convolution of the pixels and, in parallel, attention between a few slots."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from convattn.checks import check_choice, check_map, check_odd, check_positive
from convattn.layers.block import PreNormBlock, resolve_num_heads
from convattn.layers.conv2d_like import Conv2dLike, fewer_heads
from convattn.layers.depthwise import depthwise
from convattn.layers.foldable import may_fold
from convattn.layers.folding import fold_factor, fold_scale, fold_shift, may_scale
from convattn.layers.heads import HeadAttention
from convattn.layers.scalars import accept_scalars
from convattn.ops.glmix.checks import check_grid
from convattn.ops.glmix.slots import (
    CLUSTER_AND_DISPATCH,
    DISPATCH,
    cluster_and_dispatch,
    dispatch,
    kmeans_clustering,
    pool_slots,
)

SLOT_INITS = ("pooled", "learned")
CLUSTERINGS = ("soft", "kmeans", "static")
BRANCHES = ("parallel", "sequential", "local", "global")
HEAD_DIM = 32


class GLMix(Conv2dLike):
    """Mix a map by a local convolution and by attention between a few slots.

    ``S0 = pool(context);  S = cluster(S0, u);  g = dispatch(S0, MHA(S), u)``,
    ``l = 1x1(DW(1x1(u)));  y = g + l``

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output; None for ``in_chans``. Where they differ, a 1x1
            convolution follows the sum.
        num_heads: heads of the attention between slots; None for one per ``head_dim`` channels.
        head_dim: channels of a head if ``num_heads`` is None. None for 32, or, if 32 does not
            divide ``in_chans``, for the smallest larger divisor; ``in_chans`` if it is below 32.
        slots: the grid (rows, columns), or the number of slots. Pooled slots need a square number.
        slot_init: "pooled" from the context, or "learned", the same for every image.
        clustering: how pixels are clustered into slots: "soft", "kmeans" (hard, with
            ``kmeans_iterations`` rounds; the dispatch compares pixels with the centroids) or
            "static" (averages of ``u`` over the grid). All dispatch slots by a softmax over slots.
        kmeans_iterations: rounds of k-means.
        branches: "parallel" (g + l), "sequential" (the local branch, then the global one on its
            output), "local" or "global" alone.
        kernel_size: kernel of the local branch, odd.
        stride: s. The slots cluster the whole map, and are dispatched to every s-th pixel only. In
            "sequential" the local branch has the stride, and the global branch reads its output.
        dilation: distance between the pixels that the local branch reads.
        backend: path of ``convattn.ops.cluster_and_dispatch``. "native" and
            "shared" have no gradient, and raise an error if a gradient may be required. "auto"
            uses them for inference and another path for training.

    Raises:
        ValueError: sizes, names or combinations that GLMix does not support; the message names
            supported ones.

    GLMix (NeurIPS 2024, arXiv 2411.14429). The published code supports only square grids, equal
    input and output channels, soft clustering and parallel branches. It stores the inverse
    temperature as a 0-dimensional parameter; such a checkpoint loads. The paper does not define the
    order of "sequential": the local branch first is our choice.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int | None = None,
        *,
        num_heads: int | None = None,
        head_dim: int | None = None,
        slots: int | tuple[int, int] = (8, 8),
        slot_init: str = "pooled",
        clustering: str = "soft",
        kmeans_iterations: int = 3,
        branches: str = "parallel",
        kernel_size: int = 5,
        stride: int = 1,
        dilation: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        out_chans = in_chans if out_chans is None else out_chans
        check_positive("in_chans", in_chans)
        check_positive("out_chans", out_chans)
        check_choice("slot_init", slot_init, SLOT_INITS)
        check_choice("clustering", clustering, CLUSTERINGS)
        check_choice("branches", branches, BRANCHES)
        check_choice("backend", backend, ("auto", *CLUSTER_AND_DISPATCH.backends))
        check_positive("kmeans_iterations", kmeans_iterations)
        check_odd("kernel_size", kernel_size)
        check_positive("stride", stride)
        check_positive("dilation", dilation)
        if slot_init == "learned" and clustering != "soft":
            raise ValueError(
                f"clustering {clustering!r} leaves learned slots without a gradient; "
                "use slot_init='pooled', or clustering='soft'"
            )
        if backend not in ("auto", *DISPATCH.backends) and clustering != "soft":
            raise ValueError(
                f"backend {backend!r} needs clustering 'soft', got clustering={clustering!r}; "
                "use backend='auto'"
            )
        self.in_chans, self.out_chans = in_chans, out_chans
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.clustering = clustering
        self.kmeans_iterations = kmeans_iterations
        self.branches = branches
        self.backend = backend
        self._slot_grid: tuple[int, int] | None = None
        self.slot_attn: Any = None  # a HeadAttention; None for branches="local"
        self.local: Any = None  # an nn.Sequential; None for branches="global"
        if branches != "local":
            if num_heads is None and head_dim is None:
                num_heads = fewer_heads(in_chans, in_chans // HEAD_DIM)
            num_heads = resolve_num_heads(in_chans, num_heads, head_dim or HEAD_DIM)
            self.slot_scale = nn.Parameter(torch.full((1,), in_chans**-0.5))
            self.slot_attn = HeadAttention(in_chans, num_heads)
            if slot_init == "learned":
                self.slots = nn.Parameter(torch.empty(1, _number_of_slots(slots), in_chans))
                trunc_normal_(self.slots, std=0.02)
            else:
                self._slot_grid = _grid_of_slots(slots)
            self.register_load_state_dict_pre_hook(accept_scalars)
        if branches != "global":
            self.local = nn.Sequential(
                nn.Conv2d(in_chans, in_chans, 1),
                depthwise(in_chans, kernel_size, stride=stride, dilation=dilation),
                nn.Conv2d(in_chans, in_chans, 1),
            )
        same = in_chans == out_chans
        self.proj = nn.Identity() if same else nn.Conv2d(in_chans, out_chans, 1)

    @property
    def slot_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the pooled slots; None if the slots are learned or do not exist.

        Pooling has no parameters, so the grid of a trained model may be changed.
        """
        return self._slot_grid

    @slot_grid.setter
    def slot_grid(self, grid: int | tuple[int, int]) -> None:
        if self._slot_grid is None:
            raise ValueError(
                f"slot_grid={grid!r} needs pooled slots; this mixer has "
                + (
                    "no slots"
                    if self.branches == "local"
                    else "learned slots, whose number is fixed"
                )
            )
        self._slot_grid = _grid_of_slots(grid)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Mix the map ``x`` (B, in_chans, H, W) into (B, out_chans, ceil(H / s), ceil(W / s)).

        Pooled slots are pooled from ``context`` (B, in_chans, any size), or from ``x``.
        """
        check_map(x, channels=self.in_chans)
        if context is None:
            context = x
        check_map(context, "context", channels=self.in_chans)
        return self.proj(self._mix(x, context))

    def scale_outputs(self, scale: Tensor) -> bool:
        """Multiply each channel of the output by ``scale`` (out_chans,), exactly and permanently.

        Each pixel is a weighted sum of the slots, so a factor of the slots is a factor of the map.

        Returns:
            Whether the outputs are scaled; if not, the layer is unchanged.
        """
        last = self._last_layers()
        for layer in last:
            fold_scale(layer, scale)
        return bool(last)

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Replace the outputs y by ``scale * y + shift``, both (out_chans,), permanently.

        The dispatch weights of a pixel sum to one, so a shift of the slots shifts each pixel.

        Returns:
            Whether the outputs are changed; if not, the layer is unchanged.
        """
        if not self.scale_outputs(scale):
            return False
        fold_shift(self._last_layers()[-1], shift)
        return True

    def _last_layers(self) -> list[nn.Module]:
        """Return the last layer of each summed branch, or [] if one of them may not be folded."""
        if not isinstance(self.proj, nn.Identity):
            return [self.proj] if may_scale(self.proj) else []
        parts = [self.proj, self.slot_attn]
        if self.branches != "sequential":
            parts.append(self.local)
        parts = [part for part in parts if part is not None]
        known = all(isinstance(p, nn.Identity | nn.Sequential | HeadAttention) for p in parts)
        if not may_fold(*parts) or not known:
            return []
        last = [p[-1] if isinstance(p, nn.Sequential) else p.proj for p in parts[1:]]
        return last if may_scale(*last) else []

    def extra_repr(self) -> str:
        """Name what the submodules do not show."""
        slots = "none" if self.slot_attn is None else self._slot_grid or "learned"
        return (
            f"{self.in_chans}, {self.out_chans}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, slots={slots}, "
            f"clustering={self.clustering}, branches={self.branches}"
        )

    def _mix(self, x: Tensor, context: Tensor) -> Tensor:
        if self.local is None:
            return self._global(x, context, self.stride)
        if self.slot_attn is None:
            return self.local(x)
        if self.branches == "sequential":
            return self._global(self.local(x), context, 1)
        return self._global(x, context, self.stride) + self.local(x)

    def _global(self, u: Tensor, context: Tensor, stride: int) -> Tensor:
        assert self.slot_attn is not None
        prototypes = self._initial_slots(u, context)
        if self.clustering == "soft":
            scale, attend = self.slot_scale, self.slot_attn
            return cluster_and_dispatch(
                prototypes, u, scale, attend, stride=stride, backend=self.backend
            )
        if self.clustering == "kmeans":
            slots = prototypes = kmeans_clustering(prototypes, u, self.kmeans_iterations)
        else:
            assert self._slot_grid is not None
            slots = pool_slots(u, self._slot_grid)
        if stride > 1:
            u = u[:, :, ::stride, ::stride]
        return dispatch(prototypes, self.slot_attn(slots), u, self.slot_scale, backend=self.backend)

    def _initial_slots(self, u: Tensor, context: Tensor) -> Tensor:
        if self._slot_grid is None:
            return self.slots.expand(u.shape[0], -1, -1)
        return pool_slots(context, self._slot_grid)


class GLMixBlock(PreNormBlock):
    """Residual block of GLMix and a feed-forward network.

    ``x = x0 + DW3x3(x0);  x = x + ls1 * GLMix(LN(x), x0);  x = x + ls2 * FFN(LN(x))``

    Args:
        dim: channels.
        num_heads: heads of the attention between slots; None for one per ``head_dim`` channels.
        head_dim: channels of a head, where ``num_heads`` is None.
        slots: the grid (rows, columns), or the number of slots. Pooled slots need a square number.
        slot_init: "pooled" from the block's input, or "learned".
        clustering: "soft", "kmeans" or "static".
        kmeans_iterations: rounds of k-means.
        branches: "parallel", "sequential", "local" or "global".
        kernel_size: kernel of the local branch, odd.
        pos_embed: whether to add the depth-wise 3x3 convolution.
        mlp_ratio: hidden channels of the FFN over ``dim``.
        mlp_dwconv: whether the FFN has a depth-wise 3x3 convolution.
        layer_scale: initial value of the learnt scale per channel of a branch; None for no scale.
        drop_path: rate at which a branch of an image is dropped in training.
        backend: path of ``convattn.ops.cluster_and_dispatch``. "native" and
            "shared" have no gradient, and raise an error if a gradient may be required. "auto"
            uses them for inference and another path for training.

    Raises:
        ValueError: sizes, names or combinations that GLMix does not support; the message names
            supported ones.

    GLMix (NeurIPS 2024, arXiv 2411.14429), the block of GLNet. The initial slots are pooled from
    the block's input, before the position embedding and the norm, as in the published code.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        head_dim: int = 32,
        slots: int | tuple[int, int] = (8, 8),
        slot_init: str = "pooled",
        clustering: str = "soft",
        kmeans_iterations: int = 3,
        branches: str = "parallel",
        kernel_size: int = 5,
        pos_embed: bool = True,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            dim,
            pos_embed=pos_embed,
            mlp_ratio=mlp_ratio,
            mlp_dwconv=mlp_dwconv,
            layer_scale=layer_scale,
            drop_path=drop_path,
        )
        self.mixer = GLMix(
            dim,
            num_heads=num_heads,
            head_dim=head_dim,
            slots=slots,
            slot_init=slot_init,
            clustering=clustering,
            kmeans_iterations=kmeans_iterations,
            branches=branches,
            kernel_size=kernel_size,
            backend=backend,
        )

    def mix(self, u: Tensor, context: Tensor) -> Tensor:
        """Mix ``u`` by GLMix, with slots pooled from the block's input."""
        return self.mixer(u, context)

    def scale_mix(self, scale: Tensor) -> bool:
        """Fold ``scale``, a factor per channel, into the last layers of GLMix."""
        return fold_factor(self.mixer, scale)


def _number_of_slots(slots: int | tuple[int, int]) -> int:
    if isinstance(slots, int):
        check_positive("slots", slots)
        return slots
    check_grid(slots)
    return slots[0] * slots[1]


def _grid_of_slots(slots: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(slots, int):
        check_grid(slots)
        return slots[0], slots[1]
    check_positive("slots", slots)
    side = math.isqrt(slots)
    if side * side != slots:
        raise ValueError(
            f"a number of pooled slots must be a square, got slots={slots}; use {side * side}, "
            f"{(side + 1) ** 2}, or a grid (rows, columns)"
        )
    return side, side
