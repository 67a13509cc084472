"""X-volution: a convolution and an attention over shifted pixels, side by side."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.layers.ffn import depthwise
from convattn.ops._checks import (
    check_choice,
    check_divisible,
    check_map,
    check_odd,
    check_positive,
)
from convattn.ops.attention import global_attention
from convattn.ops.xvolution import BACKENDS, pixel_shift_attention

# Attention and the paths that its operator has.
ATTENTIONS = {"pssa": BACKENDS, "sa": ("sdpa", "reference")}


class XVolution(nn.Module):
    """Sum a convolution and a self-attention branch, each with its batch norm.

    ``y = BN(W^c * x) + BN(DW(attention(W_q x, W_k x, W_v x)))``

    The scale of the attention's norm starts at zero: a network in which this replaces a
    convolution and its norm computes at first what it computed before.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output; None for ``in_chans``.
        kernel_size: K of the convolution, the displacements and the weighting, odd.
        stride: stride of both branches.
        num_heads: heads of the attention.
        attention: "pssa" (pixel shift) or "sa" (softmax over the whole map).
        distance: pixels between the displacements of "pssa".
        weighting: whether a depth-wise K x K convolution follows the attention. Without it, and
            with "pssa", the operator is one convolution with a kernel that depends on content.
        backend: path of the attention: "auto", "shifted" for "pssa", "sdpa" for "sa",
            "reference".

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
        num_heads: int = 4,
        attention: str = "pssa",
        distance: int = 1,
        weighting: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        out_chans = in_chans if out_chans is None else out_chans
        check_positive("in_chans", in_chans)
        check_divisible("out_chans", out_chans, "num_heads", num_heads)
        check_odd("kernel_size", kernel_size)
        check_positive("stride", stride)
        check_positive("distance", distance)
        check_choice("attention", attention, ATTENTIONS)
        check_choice("backend", backend, ("auto", *ATTENTIONS[attention]))
        if attention == "sa" and distance != 1:
            raise ValueError(
                f"distance is for attention='pssa', got distance={distance} with attention='sa', "
                "which sees the whole map"
            )
        self.in_chans = in_chans
        self.kernel_size = kernel_size
        self.stride = stride
        self.num_heads = num_heads
        self.attention = attention
        self.distance = distance
        self.backend = backend
        self.conv = nn.Conv2d(
            in_chans, out_chans, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.conv_norm = nn.BatchNorm2d(out_chans)
        self.q_proj = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.k_proj = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.v_proj = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.weighting = depthwise(out_chans, kernel_size, bias=False) if weighting else None
        self.attn_norm = _ZeroStartNorm(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, out_chans, ceil(H / stride), ceil(W / stride))."""
        check_map(x, channels=self.in_chans)
        attended = self._attend(self.q_proj(x), self.k_proj(x), self.v_proj(x))
        if self.weighting is not None:
            attended = self.weighting(attended)
        return self.conv_norm(self.conv(x)) + self.attn_norm(attended)

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
