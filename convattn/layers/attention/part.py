"""What an attention is to ACmix: derive from it to plug in one of your own."""

from __future__ import annotations

from torch import Tensor, nn

from convattn.checks import check_positive


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

    A part with 4 heads in which every pixel gets the mean of the values::

        class Mean(AttentionPart):
            def __init__(self, dim: int) -> None:
                super().__init__((4, 4, 4), dim=dim)

            def forward(self, q, k, v):
                return v.mean(dim=(2, 3), keepdim=True).expand_as(v)

        ACmix(64, attention=Mean)  # called with the 64 output channels; or attention=Mean(64)
    """

    def __init__(
        self, groups: tuple[int, int, int], *, stride: int = 1, dim: int | None = None
    ) -> None:
        super().__init__()
        check_positive("stride", stride)
        self.groups = groups
        self.stride = stride
        # Whether ``forward`` also takes a q of only the queries that its stride answers.
        self.takes_answered = False
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
        """Attend on the map that q, k and v are projected from, where that is less work.

        Args:
            x: what ``prepare`` returned (B, C_in, H, W).
            weights: of the 1x1 convolutions that make q, k and v.
            biases: of the same, or None each.
        """
        raise NotImplementedError("this attention takes q, k and v")

    def forward_tokens(
        self, q: Tensor, k: Tensor, v: Tensor, q_tokens: Tensor, k_tokens: Tensor, v_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend with tokens that have no place on the map: what `forward` returns, and theirs.

        A part in which a pixel sees every other may have it; those of the tokens are columns (B,
        groups[i] d, T, 1), the result (B, C, T, 1).
        """
        raise NotImplementedError(
            "this attention takes no tokens; use attention='global' or 'spatial_reduction'"
        )

    def restore(self, y: Tensor) -> Tensor:
        """Move the sum of the paths back to where the input was."""
        return y
