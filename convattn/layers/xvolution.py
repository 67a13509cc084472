"""X-volution: a convolution and an attention over shifted pixels, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convattn.checks import check_choice, check_divisible, check_map, check_odd, check_positive
from convattn.layers.conv2d_like import (
    Conv2dLike,
    ConvSize,
    conv2d_size,
    fewer_heads,
    follow,
    take_trained,
    within_range,
)
from convattn.layers.depthwise import depthwise
from convattn.layers.foldable import may_fold, may_fold_inside, why_not_folded
from convattn.layers.folding import (
    fold_norm,
    fold_scale,
    fold_shift,
    has_statistics,
    may_scale,
    norm_factors,
)
from convattn.ops.global_.attention import GLOBAL, global_attention
from convattn.ops.xvolution.pixel_shift import PIXEL_SHIFT, pixel_shift_attention

NUM_HEADS = 4

# Attention and the paths that its operator has.
ATTENTIONS = {"pssa": PIXEL_SHIFT.backends, "sa": GLOBAL.backends}


class XVolution(Conv2dLike):
    """Sum a convolution and a self-attention branch, each with its batch norm.

    ``y = BN(W^c * x) + BN(DW(attention(W_q x, W_k x, W_v x)))``

    The scale of the attention's norm starts at zero: a network in which this replaces a
    convolution and its norm computes at first what it computed before.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output; None for ``in_chans``.
        kernel_size: K of the convolution, the displacements and the weighting, odd.
        stride: stride of both branches.
        dilation: distance between the pixels that the convolution takes.
        num_heads: heads of the attention.
        attention: "pssa" (pixel shift) or "sa" (softmax over the whole map).
        distance: pixels between the displacements of "pssa"; None for ``dilation``.
        weighting: whether a depth-wise K x K convolution follows the attention. Without it, and
            with "pssa", the operator is one convolution with a kernel that depends on content.
        backend: path of the attention: "auto", "reference", "shifted" or "triton" for "pssa",
            "sdpa" for "sa".

    Raises:
        ValueError: sizes or names that do not fit; the message says what would.

    X-volution (arXiv 2106.02253). No code was published: a distance of 1, all K x K displacements,
    one layer of attention, and projections without bias are our choice.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int | None = None,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = NUM_HEADS,
        attention: str = "pssa",
        distance: int | None = None,
        weighting: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        out_chans = in_chans if out_chans is None else out_chans
        check_positive("in_chans", in_chans)
        check_divisible("out_chans", out_chans, "num_heads", num_heads)
        check_odd("kernel_size", kernel_size)
        check_positive("stride", stride)
        check_positive("dilation", dilation)
        check_choice("attention", attention, ATTENTIONS)
        check_choice("backend", backend, ("auto", *ATTENTIONS[attention]))
        if attention == "sa" and distance not in (None, 1):
            raise ValueError(
                f"distance is for attention='pssa', got distance={distance} with attention='sa', "
                "which sees the whole map"
            )
        distance = dilation if distance is None else distance
        check_positive("distance", distance)
        self.in_chans = in_chans
        self.out_chans = out_chans
        self.kernel_size = kernel_size
        self.stride = stride
        self.num_heads = num_heads
        self.attention = attention
        self.distance = distance
        self.dilation = dilation
        self.backend = backend
        self.conv = nn.Conv2d(
            in_chans,
            out_chans,
            kernel_size,
            stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        )
        self.conv_norm: nn.Module = nn.BatchNorm2d(out_chans)
        self.q_proj = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.k_proj = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.v_proj = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.weighting = depthwise(out_chans, kernel_size, bias=False) if weighting else None
        self.attn_norm: nn.Module = _ZeroStartNorm(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, out_chans, ceil(H / stride), ceil(W / stride))."""
        check_map(x, channels=self.in_chans)
        attended = self._attend(self.q_proj(x), self.k_proj(x), self.v_proj(x))
        if self.weighting is not None:
            attended = self.weighting(attended)
        # a product of three projections: of all layers this one leaves float16 first
        return self.conv_norm(self.conv(x)) + self.attn_norm(within_range(attended))

    def extra_repr(self) -> str:
        """Name what the submodules do not show."""
        return (
            f"{self.in_chans}, {self.out_chans}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, num_heads={self.num_heads}, "
            f"attention={self.attention}, distance={self.distance}"
        )

    def take_over(self, conv: nn.Conv2d) -> None:
        """Make a trained convolution the convolution branch, its weights and bias as they are.

        The branch loses its norm, since that of the network follows, and the attention starts anew
        at zero: the result computes what the convolution does, and learns from there. A state dict
        in which the convolution stands under this layer's name is loaded into the branch.

        Args:
            conv: of the channels and the stride of this operator, with maps as large.

        Raises:
            ValueError: if it is of another size.
        """
        size = conv2d_size(conv)
        given = size.in_channels, size.out_channels, size.stride
        ours = self.in_chans, self.out_chans, self.stride
        if given != ours:
            raise ValueError(
                f"in_channels, out_channels and stride of the convolution must be {ours}, "
                f"got {given}"
            )
        self.conv = conv
        self.conv_norm = follow(conv, nn.Identity())
        self.attn_norm = follow(conv, _ZeroStartNorm(self.out_chans))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        taken_over = isinstance(self.conv_norm, nn.Identity)
        if taken_over and not isinstance(self.attn_norm, nn.Identity):  # else it is deployed
            take_trained(self, self.conv, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def reparameterize(self) -> None:
        """Fold both norms into the layers before them, exactly and for good, if they may be folded.

        ``y = W^c * x + b + attention``, the norm of the attention in the weighting or, without
        one, in W_v, and its shift in b. Without the weighting and with "pssa" that is one
        convolution, part of whose kernel depends on content:
        ``y(x0) = sum_delta (W^c_delta + r_delta(x0) W_v) x(x0 + delta) + b``, where distance and
        dilation are the same. For evaluation: the norms use their running statistics.

        X-volution (arXiv 2106.02253), re-parameterisation, the exact form.
        """
        left = [n for n in (self.conv_norm, self.attn_norm) if not isinstance(n, nn.Identity)]
        if not left or not may_fold_inside(self, left[-1]):
            return
        if fold_norm(self.conv, self.conv_norm):
            self.conv_norm = nn.Identity().train(self.conv.training)
        if self._fold_attn_norm():
            self.attn_norm = nn.Identity().train(self.conv.training)

    def _fold_attn_norm(self) -> bool:
        """Fold the norm of the attention: its shift into the convolution, or into the weighting."""
        reasons = [why_not_folded(layer) for layer in (self.conv, self.conv_norm)]
        ends_in_conv = isinstance(self.conv_norm, nn.Identity)
        if self.weighting is not None and not (ends_in_conv and reasons == [None, None]):
            return fold_norm(self.weighting, self.attn_norm)
        if not ends_in_conv or not may_fold(self.conv_norm, self.attn_norm):
            return False
        if not has_statistics(self.attn_norm) or not self._may_scale() or not may_scale(self.conv):
            return False
        scale, shift = norm_factors(self.attn_norm)
        fold_scale(self._last(), scale)
        fold_shift(self.conv, shift)
        return True

    def _may_scale(self) -> bool:
        """Whether a factor of the attention may be folded into its last layer."""
        last = self._last()
        return last not in (self.q_proj, self.k_proj) and may_scale(last)

    @torch.no_grad()
    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Make the outputs ``scale * y + shift`` for good, exactly; see `fold_norm`.

        Args:
            scale: (out_chans,).
            shift: (out_chans,).

        Returns:
            Whether that could be; if not, the layer is its own deployed form: a norm uses
            statistics of its batch, or a layer may not be folded.
        """
        self.reparameterize()
        for norm in (self.conv_norm, self.attn_norm):
            if not isinstance(norm, nn.Identity) or not may_fold(norm):
                return False
        if not self._may_scale() or not may_scale(self.conv):
            return False
        fold_scale(self.conv, scale)
        fold_shift(self.conv, shift)
        fold_scale(self._last(), scale)
        return True

    def _last(self) -> nn.Conv2d:
        return self.v_proj if self.weighting is None else self.weighting

    @classmethod
    def _fitting(cls, size: ConvSize, options: dict[str, Any]) -> dict[str, Any]:
        heads = {"num_heads": fewer_heads(size.out_channels, NUM_HEADS)}
        return {**heads, **super()._fitting(size, options)}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.attention == "sa":
            q = q[:, :, :: self.stride, :: self.stride]
            return global_attention(q, k, v, num_heads=self.num_heads, backend=self.backend)
        return pixel_shift_attention(
            q,
            k,
            v,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            distance=self.distance,
            stride=self.stride,
            backend=self.backend,
        )


class _ZeroStartNorm(nn.BatchNorm2d):
    """A batch norm whose scale starts at zero, whoever resets it."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)
