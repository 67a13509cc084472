"""ACmix: convolution and attention that share their projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convattn.checks import check_choice, check_divisible, check_map, check_odd, check_positive
from convattn.layers.acmix.convolution import SHIFTS, ConvolutionPath, make_group_convolution
from convattn.layers.acmix.deployed import MapConvolution
from convattn.layers.acmix.folding import absorb_affine, fold_acmix
from convattn.layers.acmix.mixes import MIXES, times
from convattn.layers.acmix.projections import Projections, is_pointwise
from convattn.layers.attention.choice import (
    ATTENTIONS,
    NUM_HEADS,
    AttentionFactory,
    make_part,
    without_attention,
)
from convattn.layers.attention.part import AttentionPart
from convattn.layers.conv2d_like import Conv2dLike, ConvSize, fewer_heads
from convattn.layers.foldable import is_bare
from convattn.layers.scalars import accept_scalars
from convattn.ops.layout import check_tokens

_Projected = tuple[Tensor, Tensor, Tensor]


class ACmix(Conv2dLike):
    """Compute q, k and v once, aggregate them by attention and by convolution, and add the results.

    ``q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v``,
    ``y = alpha * attention(q, k, v) + beta * shift_and_sum(fc(q, k, v))``

    Args:
        in_chans: channels of the input.
        out_chans: channels C of the output; None for ``in_chans``.
        attention: "sliding_window", "window", "shifted_window", "global", "spatial_reduction" or
            "patchwise"; or an ``AttentionPart``, or a function from ``out_chans`` to one.
        num_heads: N, divides C; None for 4. Not for patch-wise attention, which has 4 groups.
        kernel_size: K_c of the convolution, odd.
        window_size: K_a of a sliding window, a window or a patch; None for 7.
        reduction: R of spatial reduction; None for 2.
        stride: s. Window attention computes every query: both paths then work at full resolution,
            and ACmix subsamples the sum.
        dilation: distance between the pixels that the convolution, a sliding window or a patch
            reads.
        shift: "learned" (a group convolution whose initial kernels are the shifts), "random" (a
            group convolution with random initial kernels), "fixed" (a group convolution whose
            kernels are the shifts and are not trained), "tensor" (the tensors are shifted).
        mix: "learned" (alpha and beta), "complement" (alpha; beta = 1 - alpha), "learned_alpha"
            (alpha; beta = 1), "sum" (1, 1), "attention" (1, 0) or "convolution" (0, 1) alone,
            without the parameters of the other path. The convolution alone reads the input map: the
            map is neither rolled for shifted windows nor reduced.
        fc_bias: whether ``fc`` has a bias.
        backend: "auto", or "reference" for the formulas in both paths.

    Shape:
        (B, C_in, H, W) to (B, C, ceil(H / s), ceil(W / s)), any H and W from 1.

    Raises:
        TypeError: sizes that are not integers.
        ValueError: sizes, names or combinations that ACmix does not support; the message names
            supported ones.

    ACmix (CVPR 2022, arXiv 2111.14556), "Integration of Self-Attention and Convolution"; the
    variants of ``shift`` and ``mix`` are those of its ablations. The published code ignores the
    dilation. Its model builder overwrites the initial kernels of the group convolution (call
    ``reset_parameters`` last). Its position grid is float32 on the default GPU. Its map sizes are
    limited by reflection padding and by windows.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int | None = None,
        *,
        attention: str | AttentionPart | AttentionFactory = "sliding_window",
        num_heads: int | None = None,
        kernel_size: int = 3,
        window_size: int | None = None,
        reduction: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        shift: str = "learned",
        mix: str = "learned",
        fc_bias: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        out_chans = in_chans if out_chans is None else out_chans
        check_positive("in_chans", in_chans)
        check_positive("out_chans", out_chans)
        check_odd("kernel_size", kernel_size)
        check_positive("stride", stride)
        check_positive("dilation", dilation)
        check_choice("shift", shift, SHIFTS)
        check_choice("mix", mix, MIXES)
        check_choice("backend", backend, ("auto", "reference"))
        part = make_part(
            attention,
            out_chans,
            {"num_heads": num_heads, "window_size": window_size, "reduction": reduction},
            {"stride": stride, "dilation": dilation, "in_chans": in_chans, "backend": backend},
        )
        groups = part.groups
        check_divisible("out_chans", out_chans, "groups of v", groups[2])
        self.in_chans, self.out_chans = in_chans, out_chans
        self.head_dim = out_chans // groups[2]
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.shift, self.mix, self.backend = shift, mix, backend
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Conv2d(in_chans, number * self.head_dim, 1) for number in groups
        )
        self.attn = without_attention(part, stride) if mix == "convolution" else part
        self.fc: nn.Conv2d | None = None
        self.dep_conv: nn.Conv2d | None = None
        if mix != "attention":
            self.fc = nn.Conv2d(sum(groups), kernel_size**2, 1, bias=fc_bias)
            sizes = (self.head_dim, out_chans, kernel_size, self.attn.stride, dilation)
            self.dep_conv = make_group_convolution(shift, *sizes)
        # After ``reparameterize``: ``direct`` convolves the input map, ``folded`` q, k and v.
        self.direct: MapConvolution | None = None
        self.folded: nn.Conv2d | None = None
        self.alpha: Any = MIXES[mix].factor("alpha")
        self.beta: Any = MIXES[mix].factor("beta")
        self.register_load_state_dict_pre_hook(accept_scalars)

    @classmethod
    def _fitting(cls, size: ConvSize, options: dict[str, Any]) -> dict[str, Any]:
        named = ATTENTIONS.get(options.get("attention", "sliding_window"))
        has_heads = named is not None and "num_heads" in named.takes
        heads = {"num_heads": fewer_heads(size.out_channels, NUM_HEADS)} if has_heads else {}
        return {**heads, **super()._fitting(size, options)}

    def reset_parameters(self) -> None:
        """Initialise alpha, beta and the group convolution; call it last in a model builder."""
        for parameter in (self.alpha, self.beta):
            if isinstance(parameter, nn.Parameter):
                nn.init.constant_(parameter, 0.5)
        if self.dep_conv is not None:
            self.dep_conv.reset_parameters()

    @property
    def projections(self) -> Projections:
        """The projections to q, k and v."""
        return Projections(self.q_proj, self.k_proj, self.v_proj)

    @property
    def convolution(self) -> ConvolutionPath:
        """The convolution path."""
        return ConvolutionPath(self)

    @property
    def factors(self) -> tuple[Any, Any]:
        """Alpha and beta: parameters or numbers."""
        return self.alpha, 1 - self.alpha if self.beta is None else self.beta

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Mix a map: (B, C_in, H, W) to (B, C, ceil(H / s), ceil(W / s)).

        With tokens (B, T, C_in) this is `forward_tokens`.
        """
        if tokens is not None:
            return self.forward_tokens(x, tokens)
        check_map(x, "x", self.in_chans)
        x = self.attn.prepare(x)
        way = self.convolution.way(x)
        qkv = self._project(x, way)
        return self._mix(self._attend(x, qkv), self._convolve(x, way, qkv))

    def forward_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a map and tokens: pixels and tokens attend to each other.

        The same projections compute q, k and v of pixels and tokens. The convolution path ignores
        tokens: the output of a token is ``alpha * attention``.

        Args:
            x: the map (B, C_in, H, W).
            tokens: (B, T, C_in).

        Returns:
            The mixed map, as from ``forward``, and the mixed tokens (B, T, C).

        Raises:
            NotImplementedError: the attention does not support tokens; "global" and
                "spatial_reduction" do.
            ValueError: tokens of another shape, or ``mix="convolution"``.
        """
        check_map(x, "x", self.in_chans)
        if self.mix == "convolution":
            raise ValueError("tokens require attention, and mix='convolution' has no attention")
        if not (self.attn.supports_tokens and hasattr(type(self.attn), "forward_tokens")):
            raise NotImplementedError(
                f"{type(self.attn).__name__} does not define forward_tokens and does not support "
                "tokens; use attention='global' or 'spatial_reduction'"
            )
        check_tokens(tokens, x)
        column = tokens.transpose(1, 2).unsqueeze(3)
        x, projections = self.attn.prepare(x), self.projections
        qkv = projections(x, self.attn.context(x))
        attended, column = self.attn.forward_tokens(*qkv, *projections(column, column))
        y = self._mix(attended, self._convolve(x, self.convolution.way(x), qkv))
        return y, times(self.alpha, column).squeeze(3).transpose(1, 2)

    def reparameterize(self) -> None:
        """Fold consecutive linear operations, exactly and permanently.

        - beta is folded into ``fc``.
        - If q, k and v are projections of one map, the projections, ``fc`` and the group
          convolution become one dense convolution of that map, or a 1x1 and a group convolution,
          whichever is faster. Otherwise ``fc`` and the group convolution become one convolution if
          that needs no more multiply-adds.
        - alpha is folded into the attention's output projection, or else into W_v. If ``fc`` still
          reads v, 1 / alpha is folded into ``fc``; an alpha close to zero is then not folded.

        As before folding, biases are added inside the map only, not in the zero padding.
        """
        fold_acmix(self)

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Replace all outputs y, of pixels and tokens, by ``scale * y + shift``, permanently.

        Args:
            scale: (C,), any values.
            shift: (C,).

        Returns:
            Whether this was possible. If not, the layer is unchanged, or in its deployed form.
        """
        return absorb_affine(self, scale, shift)

    def extra_repr(self) -> str:
        """Name what the submodules do not show."""
        return (
            f"{self.in_chans}, {self.out_chans}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, shift={self.shift}, mix={self.mix}"
        )

    def _project(self, x: Tensor, way: str | None) -> _Projected | None:
        """Return q, k and v, or None where neither the attention nor the convolution needs them."""
        attn, queries = self.attn, x
        if way != "projected":
            if self.mix == "convolution" or self._attends_map():
                return None
            known = isinstance(attn, AttentionPart)  # an adapter may use all queries
            if known and attn.skips_queries and is_pointwise(self.q_proj):
                queries = x[:, :, :: attn.stride, :: attn.stride]
        return self.projections(queries, attn.context(x))

    def _attends_map(self) -> bool:
        """Return whether the attention computes its output from the map, without q, k and v."""
        attn = self.attn
        known = isinstance(attn, AttentionPart)  # the attributes of an adapter are its part's
        supported = known and attn.attends_map and attn.one_map and is_bare(attn)
        return supported and self.projections.are_readable()

    def _attend(self, x: Tensor, qkv: _Projected | None) -> Tensor | None:
        if self.mix == "convolution":
            return None
        if qkv is None:
            projections = self.projections
            return self.attn.forward_map(x, projections.weights, projections.biases)
        return self.attn(*qkv)

    def _convolve(self, x: Tensor, way: str | None, qkv: _Projected | None) -> Tensor | None:
        if way is None:
            return None
        if way != "projected" or qkv is None:
            return self.convolution.from_map(x, way)
        q, k, v = qkv
        size = (q.shape[2], q.shape[3])
        k, v = self.attn.spread(k, size), self.attn.spread(v, size)
        return self.convolution.from_projected(q, k, v)

    def _mix(self, attended: Tensor | None, convolved: Tensor | None) -> Tensor:
        """Return ``alpha * attended + beta * convolved``, or the one that is not None."""
        y = attended if convolved is None else convolved
        if attended is not None and convolved is not None:
            alpha, beta = self.factors
            y = times(alpha, attended) + times(beta, convolved)
        assert y is not None
        y = self.attn.restore(y)
        skip = self.stride // self.attn.stride  # 1 unless the attention computes every query
        return y[:, :, ::skip, ::skip] if skip > 1 else y
