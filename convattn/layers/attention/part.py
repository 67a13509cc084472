"""The base class of ACmix's attentions: derive from it to define another attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convattn.checks import check_positive

# The methods that a part may override without changing the attention that it computes.
_HARMLESS = ("__init__", "extra_repr", "reset_parameters")


class AttentionPart(nn.Module):
    """An attention over the q, k and v of ACmix. A subclass defines ``forward``.

    ACmix computes ``x = prepare(x)``; q from x, k and v from ``context(x)``;
    ``restore(alpha * forward(q, k, v) + beta * convolution(q, spread(k), spread(v)))``.

    Args:
        groups: numbers of groups of d channels in q, k and v; v has all output channels. (N, N, N)
            for N heads.
        stride: s, the stride of ``forward``'s output; 1 if the part computes every query: ACmix
            then subsamples the sum.
        dim: channels of v; None for any number. ACmix checks that it has as many output channels.

    Attributes:
        one_map: whether q, k and v are projections of one map and have its size: ``context`` and
            ``spread`` return their argument.
        attends_map: whether ``forward_map`` exists; it computes the same as ``forward``, faster.
        skips_queries: whether ``forward`` supports a q that has only the queries ``[::s, ::s]``.
        supports_tokens: whether ``forward_tokens`` exists.
        linear_in_values: whether ``forward`` is a weighted sum of v whose weights do not depend on
            v; a convolution ``proj`` may follow.
        weights_sum_to_one: whether the weights of this sum add up to one.

    A class declares these abilities in its body. A subclass inherits them, except those whose
    methods it overrides: see `__init_subclass__`.

    Example: a part with 4 heads, in which the output of every pixel is the mean of the values::

        class Mean(AttentionPart):
            def __init__(self, dim: int) -> None:
                super().__init__((4, 4, 4), dim=dim)

            def forward(self, q, k, v):
                return v.mean(dim=(2, 3), keepdim=True).expand_as(v)

        ACmix(64, attention=Mean)  # called with the 64 output channels; or attention=Mean(64)
    """

    one_map: bool = True
    attends_map: bool = False
    skips_queries: bool = False
    supports_tokens: bool = False
    linear_in_values: bool = False
    weights_sum_to_one: bool = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Set the abilities that a subclass does not declare and may not inherit.

        A method of a mixin counts as a method of the subclass. If the subclass overrides

        - ``context`` or ``spread``: ``one_map`` is False;
        - ``forward``: ``skips_queries`` is False;
        - ``forward`` or ``forward_map``: ``attends_map`` is True if it defines ``forward_map``;
        - ``forward`` or ``forward_tokens``: ``supports_tokens`` is True if it defines
          ``forward_tokens``;
        - any method: ``linear_in_values`` and ``weights_sum_to_one`` are False.
        """
        super().__init_subclass__(**arguments)
        bases = cls.__mro__[1:]
        parent = next(base for base in bases if issubclass(base, AttentionPart))
        own = {name for kind in (cls, *bases[: bases.index(parent)]) for name in vars(kind)}
        abilities: dict[str, bool] = {}
        if own & {"context", "spread"}:
            abilities["one_map"] = False
        if "forward" in own:
            abilities["skips_queries"] = False
        if own & {"forward", "forward_map"}:
            abilities["attends_map"] = "forward_map" in own
        if own & {"forward", "forward_tokens"}:
            abilities["supports_tokens"] = "forward_tokens" in own
        if any(callable(getattr(parent, name, None)) for name in own.difference(_HARMLESS)):
            abilities |= {"linear_in_values": False, "weights_sum_to_one": False}
        for name in abilities.keys() - own:
            setattr(cls, name, abilities[name])

    def __init__(
        self, groups: tuple[int, int, int], *, stride: int = 1, dim: int | None = None
    ) -> None:
        super().__init__()
        check_positive("stride", stride)
        self.groups = groups
        self.stride = stride
        self.dim = dim

    def prepare(self, x: Tensor) -> Tensor:
        """Transform the input map (B, C_in, H, W) before both paths, such as by a roll."""
        return x

    def context(self, x: Tensor) -> Tensor:
        """Return the map from which keys and values are projected."""
        return x

    def spread(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize keys or values to the size (H, W) of the queries, for the convolution path."""
        return x

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, C, ceil(H / s), ceil(W / s)).

        Args:
            q: queries (B, groups[0] d, H, W), group after group, not yet scaled.
            k: keys (B, groups[1] d, h, w), of the size of ``context``.
            v: values (B, groups[2] d, h, w).
        """
        raise NotImplementedError

    def forward_map(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Project a map to q, k and v and attend, in one operator.

        Args:
            x: the output of ``prepare`` (B, C_in, H, W).
            weights: the weights of the 1x1 convolutions that compute q, k and v.
            biases: the biases of these convolutions; None for no bias.
        """
        raise NotImplementedError(
            "this attention requires q, k and v: it does not define forward_map"
        )

    def forward_tokens(
        self, q: Tensor, k: Tensor, v: Tensor, q_tokens: Tensor, k_tokens: Tensor, v_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend with T tokens that have no position on the map: return the map and the tokens.

        A part may define this method if every pixel attends to every other pixel. The queries, keys
        and values of the tokens have shape (B, groups[i] d, T, 1), the result (B, C, T, 1).
        """
        raise NotImplementedError(
            "this attention does not support tokens; use attention='global' or 'spatial_reduction'"
        )

    def restore(self, y: Tensor) -> Tensor:
        """Undo ``prepare`` on the sum of both paths."""
        return y
