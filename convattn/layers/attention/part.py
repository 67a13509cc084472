"""What an attention is to ACmix: derive from it to plug in one of your own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convattn.checks import check_positive

# What a part may override without a change of the attention that it computes.
_HARMLESS = ("__init__", "extra_repr", "reset_parameters")


class AttentionPart(nn.Module):
    """An attention over q, k and v that ACmix made: derive from it and write ``forward``.

    ACmix computes ``x = prepare(x)``; q from x, k and v from ``context(x)``;
    ``restore(alpha * forward(q, k, v) + beta * convolution(q, spread(k), spread(v)))``.

    Args:
        groups: how many groups of d channels q, k and v have, where v has all output channels: (N,
            N, N) for N heads.
        stride: s of ``forward``'s result; 1 where the part cannot skip queries: ACmix then skips
            pixels of the sum.
        dim: channels of v, where the part is made for a number; ACmix checks that it has as many.

    Attributes:
        one_map: whether q, k and v are projections of one map, and of its size: ``context`` and
            ``spread`` return their argument.
        attends_map: whether ``forward_map`` computes the same as ``forward``, with less work.
        skips_queries: whether ``forward`` supports a q of the queries at ``[::s, ::s]`` alone.
        supports_tokens: whether there is a ``forward_tokens``.
        linear_in_values: whether ``forward`` sums v with weights that do not depend on v; the
            convolution ``proj`` may follow, if the part has one.
        weights_sum_to_one: whether those weights do.

    A class declares these abilities in its body. Those of a class that it is derived from are
    inherited unless it overrides what computes them: see `__init_subclass__`.

    A part with 4 heads in which every pixel gets the mean of the values::

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
        """Set the abilities that a class does not declare, and may not inherit.

        Methods of classes beside the part that the class is derived from count as its own:

        - ``context`` or ``spread``: ``one_map`` is False;
        - ``forward``: ``skips_queries`` is False;
        - ``forward`` or ``forward_map``: ``attends_map`` is whether it has the latter;
        - ``forward`` or ``forward_tokens``: ``supports_tokens`` is whether it has the latter;
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
        """Move the map (B, C_in, H, W) to where both paths work."""
        return x

    def context(self, x: Tensor) -> Tensor:
        """Return the map that keys and values are projected from."""
        return x

    def spread(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring keys or values to the size (H, W) of the queries for the convolution path."""
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
        """Attend on the map that q, k and v are projections of.

        Args:
            x: what ``prepare`` returned (B, C_in, H, W).
            weights: of the 1x1 convolutions that make q, k and v.
            biases: of the same, or None each.
        """
        raise NotImplementedError("this attention takes q, k and v")

    def forward_tokens(
        self, q: Tensor, k: Tensor, v: Tensor, q_tokens: Tensor, k_tokens: Tensor, v_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend with T tokens, which have no place on the map: return the map and the tokens.

        A part in which a pixel attends to every other may have this method. The queries, keys and
        values of the tokens are columns (B, groups[i] d, T, 1), their result is (B, C, T, 1).
        """
        raise NotImplementedError(
            "this attention takes no tokens; use attention='global' or 'spatial_reduction'"
        )

    def restore(self, y: Tensor) -> Tensor:
        """Move the sum of the paths back to where the input was."""
        return y
