"""The attentions of ACmix: each has its parameters and calls one operator of ``convattn.ops``.

B: batch. C: channels. N: heads of d = C / N channels. H, W: size of the map. s: stride. ACmix
computes the projections q, k and v, and the part computes the attention: see ``AttentionPart``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from convattn.checks import check_choice, check_divisible, check_map, check_odd, check_positive
from convattn.layers.attention.part import AttentionPart
from convattn.layers.folding import fold_sequence
from convattn.layers.norm import LayerNorm2d
from convattn.ops.global_.attention import GLOBAL, global_attention
from convattn.ops.patchwise.aggregate import PATCHWISE, neighbourhoods, patchwise_aggregate
from convattn.ops.sliding.attention import SLIDING, sliding_window_attention
from convattn.ops.windows.attention import WINDOWS, map_window_attention, window_attention


class SlidingWindowAttention(AttentionPart):
    """Attention to the K x K pixels around each one, with learnt relative positions.

    ``y_i = sum_j softmax_j(q_i . (k_j + p_i - p_j) / sqrt(d)) v_j``, ``p = W_p (x, y) + b``, x and
    y from -1 to 1 over the map.

    Args:
        dim: channels C.
        num_heads: N.
        window_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a window.
        backend: path of ``convattn.ops.sliding_window_attention``.

    Raises:
        ValueError: sizes that do not fit.

    ACmix (arXiv 2111.14556), after SASA (arXiv 1906.05909). The position grid has the type and the
    device of the map at every call; the published one is float32 on the default GPU.
    """

    skips_queries = True
    linear_in_values = True
    weights_sum_to_one = True

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        window_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        backend: str = "auto",
    ) -> None:
        check_divisible("dim", dim, "num_heads", num_heads)
        check_odd("window_size", window_size)
        check_positive("dilation", dilation)
        check_choice("backend", backend, ("auto", *SLIDING.backends))
        super().__init__((num_heads, num_heads, num_heads), stride=stride, dim=dim)
        self.num_heads = num_heads
        self.window_size = window_size
        self.dilation = dilation
        self.backend = backend
        self.pos_proj = nn.Conv2d(2, dim // num_heads, 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, C, ceil(H / s), ceil(W / s)); ``q`` may have that size or the map's."""
        return sliding_window_attention(
            q,
            k,
            v,
            num_heads=self.num_heads,
            window_size=self.window_size,
            stride=self.stride,
            dilation=self.dilation,
            position=self.pos_proj(position_grid(k)),
            backend=self.backend,
        )


class WindowAttention(AttentionPart):
    """Attention inside each K x K window of the map's grid of windows, then a projection.

    ``y = W_o (softmax(q k^T / sqrt(d) + b) v) + b_o``, with a learnt bias b per head and relative
    position.

    Args:
        dim: channels C.
        num_heads: N.
        window_size: K.
        shifted: whether the grid of windows is shifted by K // 2 rows and columns. It is not
            shifted along an axis with at most K pixels.
        backend: path of ``convattn.ops.window_attention``.

    Raises:
        ValueError: sizes that do not fit.

    ACmix (arXiv 2111.14556), "Generalization to Other Attention Modes", after Swin (arXiv
    2103.14030), section 3.2. The published code requires maps whose sides are multiples of
    K.
    """

    attends_map = True
    linear_in_values = True
    weights_sum_to_one = True

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        window_size: int = 7,
        shifted: bool = False,
        backend: str = "auto",
    ) -> None:
        check_divisible("dim", dim, "num_heads", num_heads)
        check_positive("window_size", window_size)
        check_choice("backend", backend, ("auto", *WINDOWS.backends))
        super().__init__((num_heads, num_heads, num_heads), dim=dim)
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = window_size // 2 if shifted else 0
        self.backend = backend
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        self.proj = nn.Conv2d(dim, dim, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the bias table with small random values."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def prepare(self, x: Tensor) -> Tensor:
        """Roll the map: the shifted windows become the windows of the unshifted grid."""
        rows, columns = self._shifts(x)
        return torch.roll(x, (-rows, -columns), (2, 3)) if rows + columns > 0 else x

    def restore(self, y: Tensor) -> Tensor:
        """Roll the map back."""
        rows, columns = self._shifts(y)
        return torch.roll(y, (rows, columns), (2, 3)) if rows + columns > 0 else y

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, C, H, W)."""
        attended = window_attention(
            q,
            k,
            v,
            num_heads=self.num_heads,
            window_size=self.window_size,
            shift=self._shifts(q),
            bias=self.bias(),
            backend=self.backend,
        )
        return self.proj(attended)

    def forward_map(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Project a map to q, k and v and attend, in one operator: (B, C, H, W)."""
        attended = map_window_attention(
            x,
            weights,
            biases,
            num_heads=self.num_heads,
            window_size=self.window_size,
            shift=self._shifts(x),
            bias=self.bias(),
            backend=self.backend,
        )
        return self.proj(attended)

    def _shifts(self, x: Tensor) -> tuple[int, int]:
        rows = self.shift if x.shape[2] > self.window_size else 0
        columns = self.shift if x.shape[3] > self.window_size else 0
        return rows, columns

    def bias(self) -> Tensor:
        """Look up the bias of every pair of pixels: (N, K^2, K^2)."""
        places = torch.arange(self.window_size, device=self.relative_position_bias_table.device)
        apart = places[:, None] - places + self.window_size - 1
        width = 2 * self.window_size - 1
        index = width * apart[:, None, :, None] + apart[None, :, None, :]
        table = self.relative_position_bias_table[index.flatten()]
        pixels = self.window_size * self.window_size
        return table.T.unflatten(1, (pixels, pixels))


class GlobalAttention(AttentionPart):
    """Attention from every pixel to every pixel.

    ``y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j``, with ``proj`` then ``W_o y_i + b_o``

    Args:
        dim: channels C.
        num_heads: N.
        stride: s.
        proj: whether a projection follows, as in the blocks of ViT and PVT.
        backend: path of ``convattn.ops.global_attention``.

    Raises:
        ValueError: sizes that do not fit.

    ACmix (arXiv 2111.14556), "Generalization to Other Attention Modes", after ViT. The paper
    defines no position term and no projection.
    """

    supports_tokens = True
    linear_in_values = True
    weights_sum_to_one = True

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        stride: int = 1,
        proj: bool = False,
        backend: str = "auto",
    ) -> None:
        check_divisible("dim", dim, "num_heads", num_heads)
        check_choice("backend", backend, ("auto", *GLOBAL.backends))
        super().__init__((num_heads, num_heads, num_heads), stride=stride, dim=dim)
        self.num_heads = num_heads
        self.backend = backend
        self.proj: nn.Module = nn.Conv2d(dim, dim, 1) if proj else nn.Identity()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, C, ceil(H / s), ceil(W / s))."""
        q = q[:, :, :: self.stride, :: self.stride]
        return self.proj(self._attend(q, k, v))

    def forward_tokens(
        self, q: Tensor, k: Tensor, v: Tensor, q_tokens: Tensor, k_tokens: Tensor, v_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend jointly over pixels and tokens: (B, C, ceil(H / s), ceil(W / s)), (B, C, T, 1)."""
        q = q[:, :, :: self.stride, :: self.stride]
        H, W, T = q.shape[2], q.shape[3], q_tokens.shape[2]
        y = self._attend(
            prepend_tokens(q_tokens, q), prepend_tokens(k_tokens, k), prepend_tokens(v_tokens, v)
        )
        y = self.proj(y)
        return y[:, :, T:, 0].unflatten(2, (H, W)), y[:, :, :T]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return global_attention(q, k, v, num_heads=self.num_heads, backend=self.backend)


class SpatialReductionAttention(GlobalAttention):
    """Attention from every pixel to a map reduced R times along each axis.

    ``k, v`` from ``LayerNorm(Conv_RxR,stride R(x))``, then as in ``GlobalAttention``

    Args:
        dim: channels C.
        in_chans: channels of the map that is reduced; None for ``dim``.
        num_heads: N.
        reduction: R; with 1 the map is not reduced, and the reduction has no parameters.
        stride: s.
        proj: whether a projection follows.
        backend: path of ``convattn.ops.global_attention``.

    Raises:
        ValueError: sizes that do not fit.

    ACmix (arXiv 2111.14556), "Generalization to Other Attention Modes", after PVT (arXiv
    2102.12122), section 3.3. As in PVT, rows and columns beyond the last full R x R patch are
    ignored. A map smaller than R, which PVT does not support, is padded with zeros.
    """

    one_map = False
    linear_in_values = True
    weights_sum_to_one = True

    def __init__(
        self,
        dim: int,
        *,
        in_chans: int | None = None,
        num_heads: int = 4,
        reduction: int = 2,
        stride: int = 1,
        proj: bool = False,
        backend: str = "auto",
    ) -> None:
        check_positive("reduction", reduction)
        super().__init__(dim, num_heads=num_heads, stride=stride, proj=proj, backend=backend)
        in_chans = dim if in_chans is None else in_chans
        self.reduction = reduction
        self.reduce: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if reduction > 1:
            self.reduce = nn.Conv2d(in_chans, in_chans, reduction, stride=reduction)
            self.norm = LayerNorm2d(in_chans, eps=1e-5)  # PVT's other norms have 1e-6

    def context(self, x: Tensor) -> Tensor:
        """Reduce the map: (B, C_in, floor(H / R), floor(W / R)), at least one pixel."""
        bottom, right = max(self.reduction - x.shape[2], 0), max(self.reduction - x.shape[3], 0)
        if bottom + right > 0:
            x = F.pad(x, (0, right, 0, bottom))
        return self.norm(self.reduce(x))

    def spread(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Repeat each pixel R x R times; ignored rows and columns get the nearest pixel."""
        for dim, length in ((2, size[0]), (3, size[1])):
            places = torch.arange(length, device=x.device) // self.reduction
            x = x.index_select(dim, places.clamp_max(x.shape[dim] - 1))
        return x


class PatchwiseAttention(AttentionPart):
    """Weights for the K x K pixels around each one, from a small network on the whole patch.

    ``y[c, i] = sum_t w[c mod M, t, i] v[c, i + t]``, ``w_i = MLP([q_i, k_j for all j of the
    patch])``

    Args:
        dim: channels C of v, read as 4 groups of C / 4: q and k have one such group each.
        window_size: K, odd.
        stride: s.
        dilation: distance between the pixels of a patch.
        share: how many channels of v share weights: M = C / share.
        backend: path of ``convattn.ops.patchwise_aggregate``.

    Raises:
        ValueError: sizes that do not fit.

    ACmix (arXiv 2111.14556), "Generalization to Other Attention Modes", after the patch-wise SAN
    (arXiv 2004.13621), section 3.2. The network copies k K^2 times, because its batch norm
    has parameters for each position in the patch; v is not copied. In training, batch norm requires
    more than one position in the batch.
    """

    linear_in_values = True

    def __init__(
        self,
        dim: int,
        *,
        window_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        share: int = 8,
        backend: str = "auto",
    ) -> None:
        check_divisible("dim", dim, "groups of v", 4)
        check_divisible("dim", dim, "share", share)
        check_odd("window_size", window_size)
        check_positive("dilation", dilation)
        check_choice("backend", backend, ("auto", *PATCHWISE.backends))
        super().__init__((1, 1, 4), stride=stride, dim=dim)
        self.window_size = window_size
        self.dilation = dilation
        self.backend = backend
        maps, places = dim // share, window_size**2
        seen = dim // 4 * (1 + places)
        self.mlp = nn.Sequential(
            nn.BatchNorm2d(seen),
            nn.ReLU(inplace=True),
            nn.Conv2d(seen, maps, 1, bias=False),
            nn.BatchNorm2d(maps),
            nn.ReLU(inplace=True),
            nn.Conv2d(maps, maps * places, 1),
        )

    def reparameterize(self) -> None:
        """Fold the norm inside the network into the layer before it, permanently."""
        fold_sequence(self.mlp)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, C, ceil(H / s), ceil(W / s))."""
        around = neighbourhoods(
            k, kernel_size=self.window_size, stride=self.stride, dilation=self.dilation
        )
        q = q[:, :, :: self.stride, :: self.stride]
        weights = self.mlp(torch.cat([q, around.flatten(1, 2)], dim=1))
        return patchwise_aggregate(
            weights.unflatten(1, (-1, self.window_size * self.window_size)),
            v,
            kernel_size=self.window_size,
            stride=self.stride,
            dilation=self.dilation,
            backend=self.backend,
        )


def prepend_tokens(tokens: Tensor, x: Tensor) -> Tensor:
    """Return tokens (B, C, T, 1) and then the pixels of a map, row by row: (B, C, T + H W, 1)."""
    return torch.cat([tokens, x.flatten(2).unsqueeze(3)], dim=2)


def position_grid(x: Tensor) -> Tensor:
    """Return the coordinates (x, y) from -1 to 1 in the dtype of ``x``: (1, 2, H, W)."""
    check_map(x)
    H, W = x.shape[2], x.shape[3]
    rows, columns = _from_minus_one_to_one(H, x), _from_minus_one_to_one(W, x)
    return torch.stack([columns.expand(H, W), rows[:, None].expand(H, W)])[None]


def _from_minus_one_to_one(size: int, like: Tensor) -> Tensor:
    """Return ``torch.linspace(-1, 1, size)``, in a form that exports for any size."""
    # in float32 or float64: bfloat16 does not represent all integers above 256
    dtype = torch.promote_types(like.dtype, torch.float32)
    places = torch.arange(size, device=like.device, dtype=dtype)
    return (places * (2 / max(size - 1, 1)) - 1).to(like.dtype)
