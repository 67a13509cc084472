"""ACmix: convolution and attention that share their projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convattn.checks import check_choice, check_divisible, check_map, check_odd, check_positive
from convattn.layers.acmix.choices import MIXES as MIXES
from convattn.layers.acmix.choices import SHIFTS as SHIFTS
from convattn.layers.acmix.choices import make_group_convolution, times
from convattn.layers.acmix.folding import absorb_affine, fold_acmix
from convattn.layers.acmix.shortcuts import (
    attends_map,
    call_layers,
    has_bare_layers,
    has_bare_projections,
    is_pointwise,
    sees_one_map,
)
from convattn.layers.attention.choice import ATTENTIONS, NUM_HEADS, AttentionFactory, make_part
from convattn.layers.attention.part import AttentionPart
from convattn.layers.bare import is_bare
from convattn.layers.conv2d_like import Conv2dLike, ConvSize, fewer_heads
from convattn.layers.scalars import accept_scalars
from convattn.ops.acmix.convolution import (
    acmix_convolution,
    convolution_path,
    folded_convolution,
    map_convolution,
    shift_convolution,
)
from convattn.ops.fuse import shift_kernels
from convattn.ops.layout import check_tokens


class ACmix(Conv2dLike):
    """Aggregate one projection twice, by attention and by convolution, and add the two.

    ``q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v``,
    ``y = alpha * attention(q, k, v) + beta * shift_and_sum(fc(q, k, v))``

    Args:
        in_chans: channels of the input.
        out_chans: channels C of the output; None for ``in_chans``.
        attention: "sliding_window", "window", "shifted_window", "global", "spatial_reduction" or
            "patchwise"; or an ``AttentionPart``, or what makes one of ``out_chans``.
        num_heads: N, divides C; None for 4. Patch-wise attention has 4 groups and takes none.
        kernel_size: K_c of the convolution, odd.
        window_size: K_a of a sliding window, a window or a patch; None for 7.
        reduction: R of spatial reduction; None for 2.
        stride: s. Windows cannot skip queries: with them both paths work at full resolution and the
            sum is sampled.
        dilation: distance between the pixels that the convolution, a sliding window or a patch
            takes.
        shift: "learned" (a group convolution that starts at the shifts), "random" (one that does
            not), "fixed" (its kernels are the shifts), "tensor" (tensors are shifted).
        mix: "learned" (alpha and beta), "complement" (alpha; beta = 1 - alpha), "learned_alpha"
            (alpha; beta = 1), "sum" (1, 1), "attention" (1, 0) or "convolution" (0, 1) alone,
            without the parameters of the other: that convolution takes the map as it is, neither
            rolled nor reduced.
        fc_bias: whether ``fc`` has a bias.
        backend: "auto", or "reference" for the formulas in both paths.

    Shape:
        (B, C_in, H, W) to (B, C, ceil(H / s), ceil(W / s)), any H and W from 1.

    Raises:
        TypeError: sizes that are not integers.
        ValueError: sizes, names or combinations that do not fit; the message says what would.

    ACmix (CVPR 2022, arXiv 2111.14556), "Integration of Self-Attention and Convolution"; the
    variants of ``shift`` and ``mix`` are those of its ablations. The published code ignores the
    dilation; its model builder overwrites the start of the group convolution (call
    ``reset_parameters`` last); its position grid is float32 on the default GPU; its sizes are
    limited by reflection and windows.
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
        # alone, the convolution needs no more of the attention than its way of grouping channels
        self.attn = AttentionPart(groups, stride=stride) if mix == "convolution" else part
        self.fc: nn.Conv2d | None = None
        self.dep_conv: nn.Conv2d | None = None
        if mix != "attention":
            self.fc = nn.Conv2d(sum(groups), kernel_size**2, 1, bias=fc_bias)
            sizes = (self.head_dim, out_chans, kernel_size, self.attn.stride, dilation)
            self.dep_conv = make_group_convolution(shift, *sizes)
        # whether the convolution may take the map that q, k and v come from in their place
        self.takes_map = (
            mix != "attention" and shift != "tensor" and backend == "auto" and sees_one_map(part)
        )
        self.attends_map = attends_map(self.attn)  # and whether the attention may
        # after ``reparameterize`` one of these: from that map, or from q, k and v
        self.direct: Any = None
        self.folded: Any = None
        self.alpha: Any = MIXES[mix].factor("alpha")
        self.beta: Any = MIXES[mix].factor("beta")
        self.register_load_state_dict_pre_hook(accept_scalars)

    @classmethod
    def _fitting(cls, size: ConvSize, options: dict[str, Any]) -> dict[str, Any]:
        named = ATTENTIONS.get(options.get("attention", "sliding_window"))
        takes_heads = named is not None and "num_heads" in named.takes
        heads = {"num_heads": fewer_heads(size.out_channels, NUM_HEADS)} if takes_heads else {}
        return {**heads, **super()._fitting(size, options)}

    def reset_parameters(self) -> None:
        """Start alpha, beta and the group convolution anew: last, after a builder's own start."""
        for parameter in (self.alpha, self.beta):
            if isinstance(parameter, nn.Parameter):
                nn.init.constant_(parameter, 0.5)
        if self.dep_conv is not None:
            self.dep_conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map: (B, C_in, H, W) to (B, C, ceil(H / s), ceil(W / s))."""
        check_map(x, "x", self.in_chans)
        x = self.attn.prepare(x)
        path = self._path(x)
        if self.mix == "convolution" and path != "projected":
            y = self._convolve_map(x, path)
        elif self._leaves_projections(path):
            y = self._add_convolution(self._attend_map(x), x, x, x, x, path)
        else:
            q, k, v = self._project(x, path)
            if self.mix == "convolution":
                y = self._convolve(q, k, v)
            else:
                y = self._add_convolution(self.attn(q, k, v), x, q, k, v, path)
        return self._sample(self.attn.restore(y))

    def forward_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a map beside tokens that attend, and are attended to, together with its pixels.

        The same projections make q, k and v of both. The convolution never sees a token, so of the
        sum a token has one term: ``alpha * attention``.

        Args:
            x: the map (B, C_in, H, W).
            tokens: (B, T, C_in).

        Returns:
            What ``forward`` returns of a map, and the tokens (B, T, C).

        Raises:
            NotImplementedError: an attention that tokens have no place in; "global" and
                "spatial_reduction" take them.
            ValueError: tokens of another shape, or ``mix="convolution"``.
        """
        check_map(x, "x", self.in_chans)
        if self.mix == "convolution":
            raise ValueError("tokens need an attention, and mix='convolution' has none")
        check_tokens(tokens, x)
        column = tokens.transpose(1, 2).unsqueeze(3)
        x = self.attn.prepare(x)
        path = self._path(x)
        q, k, v = self._project(x, "projected")
        attended, column = self.attn.forward_tokens(
            q, k, v, self.q_proj(column), self.k_proj(column), self.v_proj(column)
        )
        y = self._sample(self.attn.restore(self._add_convolution(attended, x, q, k, v, path)))
        return y, times(self.alpha, column).squeeze(3).transpose(1, 2)

    def reparameterize(self) -> None:
        """Fold what is linear with nothing between, exactly and for good.

        beta goes into ``fc``. Where q, k and v come from one map, the projections to them, ``fc``
        and the group convolution become a dense convolution of that map, or a 1x1 and a group
        convolution, whichever is faster; else the last two become one where that is no more work.
        alpha goes into the attention's output projection, or into W_v, with its inverse where
        ``fc`` still takes v, unless it is close to zero. A bias ends at the border of the map, as
        it did before the group convolution.
        """
        fold_acmix(self)

    def absorb_affine(self, scale: Tensor, shift: Tensor) -> bool:
        """Make all outputs ``scale * y + shift``, those of tokens too, exactly and for good.

        Args:
            scale: (C,), any values.
            shift: (C,).

        Returns:
            Whether that could be; if not, the layer is what it was, or its own deployed form.
        """
        return absorb_affine(self, scale, shift)

    def extra_repr(self) -> str:
        """Name what the submodules do not show."""
        return (
            f"{self.in_chans}, {self.out_chans}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, shift={self.shift}, mix={self.mix}"
        )

    def _path(self, x: Tensor) -> str:
        """Say what the convolution takes: "projected" for q, k and v, else the map itself."""
        if self.direct is not None:
            return "direct"
        if not (self.takes_map and has_bare_projections(self) and has_bare_layers(self)):
            return "projected"
        return convolution_path(
            x,
            head_dim=self.head_dim,
            out_chans=self.out_chans,
            stride=self.attn.stride,
            alone=self.mix == "convolution",
            backend=self.backend,
        )

    def _leaves_projections(self, path: str) -> bool:
        """Whether the attention makes q, k and v, as the convolution does without them."""
        if not self.attends_map or (path == "projected" and self.mix != "attention"):
            return False
        return has_bare_projections(self) and is_bare(self.attn)

    def _leaves_queries(self, path: str) -> bool:
        """Whether none but the queries that the attention answers are needed, nor looked at."""
        if not self.attn.takes_answered or (path == "projected" and self.mix != "attention"):
            return False
        return is_pointwise(self.q_proj)

    def _attend_map(self, x: Tensor) -> Tensor:
        return self.attn.forward_map(
            x,
            [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight],
            [self.q_proj.bias, self.k_proj.bias, self.v_proj.bias],
        )

    def _project(self, x: Tensor, path: str) -> tuple[Tensor, Tensor, Tensor]:
        context = self.attn.context(x)
        if self._leaves_queries(path):
            x = x[:, :, :: self.attn.stride, :: self.attn.stride]
        return self.q_proj(x), self.k_proj(context), self.v_proj(context)

    def _add_convolution(
        self, attended: Tensor, x: Tensor, q: Tensor, k: Tensor, v: Tensor, path: str
    ) -> Tensor:
        if self.fc is None and self.folded is None and self.direct is None:
            return attended
        beta = 1 - self.alpha if self.beta is None else self.beta
        convolved = self._convolve(q, k, v) if path == "projected" else self._convolve_map(x, path)
        return times(self.alpha, attended) + times(beta, convolved)

    def _sample(self, y: Tensor) -> Tensor:
        """Leave out what the stride does, where the attention answered all the same."""
        skip = self.stride // self.attn.stride
        return y[:, :, ::skip, ::skip] if skip > 1 else y

    def _convolve_map(self, x: Tensor, path: str) -> Tensor:
        if self.direct is not None:
            return self.direct(x)
        assert self.fc is not None
        return map_convolution(
            x,
            [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight],
            [self.q_proj.bias, self.k_proj.bias, self.v_proj.bias],
            self.fc.weight,
            self.dep_weight(x),
            head_dim=self.head_dim,
            fc_bias=self.fc.bias,
            stride=self.attn.stride,
            dilation=self.dilation,
            path=path,
        )

    def _convolve(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = self.attn.spread(k, (q.shape[2], q.shape[3]))
        v = self.attn.spread(v, (q.shape[2], q.shape[3]))
        if self.folded is None:
            return self._shift_and_sum(q, k, v)
        return folded_convolution(
            q,
            k,
            v,
            self.folded.weight,
            head_dim=self.head_dim,
            stride=self.attn.stride,
            dilation=self.dilation,
        )

    def _shift_and_sum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not has_bare_layers(self):
            return call_layers(self, q, k, v)
        fc = self.fc
        assert fc is not None
        if self.shift == "tensor":
            return shift_convolution(
                q,
                k,
                v,
                fc.weight,
                head_dim=self.head_dim,
                num_outputs=self.out_chans // self.head_dim,
                fc_bias=fc.bias,
                stride=self.attn.stride,
                dilation=self.dilation,
            )
        return acmix_convolution(
            q,
            k,
            v,
            fc.weight,
            self.dep_weight(q),
            head_dim=self.head_dim,
            fc_bias=fc.bias,
            stride=self.attn.stride,
            dilation=self.dilation,
            backend=self.backend,
        )

    def dep_weight(self, like: Tensor) -> Tensor:
        """Return the kernels of the group convolution (C, K_c^2, K_c, K_c), like a map in type."""
        if self.dep_conv is None:
            return shift_kernels(
                self.kernel_size, self.out_chans, device=like.device, dtype=like.dtype
            )
        return self.dep_conv.weight
