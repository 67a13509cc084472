"""X-volution: the sum of a convolution and of an attention over shifted pixels."""

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

# The attentions, each with the paths of its operator.
ATTENTIONS = {"pssa": PIXEL_SHIFT.backends, "sa": GLOBAL.backends}


class XVolution(Conv2dLike):
    """Sum a convolution and a self-attention branch, each with its batch norm.

    ``y = BN(W^c * x) + BN(DW(attention(W_q x, W_k x, W_v x)))``

    The scale of the attention's norm is initialized to zero: if X-volution replaces a convolution
    and its norm, the outputs of the network are at first unchanged.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output; None for ``in_chans``.
        kernel_size: K of the convolution, of the displacements and of the weighting; odd.
        stride: stride of both branches.
        dilation: distance between the pixels that the convolution reads.
        num_heads: heads of the attention.
        attention: "pssa" (pixel shift) or "sa" (softmax over the whole map).
        distance: pixels between the displacements of "pssa"; None for ``dilation``.
        weighting: whether a depth-wise K x K convolution follows the attention. Without
            weighting, and with "pssa", the operator is one convolution whose kernel depends on the
            input.
        backend: path of the attention: "auto", "reference", "shifted" or "triton" for "pssa",
            "sdpa" for "sa".

    Raises:
        ValueError: sizes or names that X-volution does not support; the message names supported
            ones.

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
                "whose queries attend to the whole map"
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
        # The attention is a product of three projections: it is the first to overflow in float16.
        return self.conv_norm(self.conv(x)) + self.attn_norm(within_range(attended))

    def extra_repr(self) -> str:
        """Name what the submodules do not show."""
        return (
            f"{self.in_chans}, {self.out_chans}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, num_heads={self.num_heads}, "
            f"attention={self.attention}, distance={self.distance}"
        )

    def take_over(self, conv: nn.Conv2d) -> None:
        """Use a trained convolution, with its weights and bias, as the convolution branch.

        The norm of the branch is removed, because the norm of the network follows. The scale of
        the attention's norm is reset to zero, so the outputs equal those of the convolution until
        training changes them. A state dict that has the convolution under this layer's name is
        loaded into the branch.

        Args:
            conv: a convolution with the channels, stride and output size of this operator.

        Raises:
            ValueError: the convolution has other channels or another stride.
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
        if taken_over and not isinstance(self.attn_norm, nn.Identity):  # else deployed
            take_trained(self, self.conv, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def reparameterize(self) -> None:
        """Fold both norms into the layers before them, exactly and permanently, if possible.

        The result is ``y = W^c * x + b + attention``. The scale of the attention's norm is folded
        into the weighting, or into W_v if there is no weighting; its shift is folded into b.
        Without weighting, with "pssa" and with equal distance and dilation, the operator is one
        convolution, and a part of its kernel depends on the input:
        ``y(x0) = sum_delta (W^c_delta + r_delta(x0) W_v) x(x0 + delta) + b``. For evaluation only:
        the norms use their running statistics.

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
        """Fold the attention's norm, its shift into the convolution or the weighting."""
        reasons = [why_not_folded(layer) for layer in (self.conv, self.conv_norm)]
        without_norm = isinstance(self.conv_norm, nn.Identity)
        if self.weighting is not None and not (without_norm and reasons == [None, None]):
            return fold_norm(self.weighting, self.attn_norm)
        if not without_norm or not may_fold(self.conv_norm, self.attn_norm):
            return False
        if not has_statistics(self.attn_norm) or not self._may_scale() or not may_scale(self.conv):
            return False
        scale, shift = norm_factors(self.attn_norm)
        fold_scale(self._last(), scale)
        fold_shift(self.conv, shift)
        return True

    def _may_scale(self) -> bool:
        """Return whether a factor of the attention may be folded into its last layer."""
        last = self._last()
        return last not in (self.q_proj, self.k_proj) and may_scale(last)

    @torch.no_grad()
    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Replace the outputs y by ``scale * y + shift``, exactly and permanently; see `fold_norm`.

        Args:
            scale: (out_chans,).
            shift: (out_chans,).

        Returns:
            Whether this was possible. If not, the layer is in its deployed form: a norm has no
            running statistics, or a layer may not be folded.
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
    """A batch norm whose ``reset_parameters`` sets the scale to zero."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)
