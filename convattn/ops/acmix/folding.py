"""Weight arithmetic of ACmix's convolution path: from the map that q, k and v are projected from.

C_in channels of that map, J groups of d channels (of q, then of k, then of v), M = K^2 maps per
channel, N outputs per channel, K kernel. q, k and v are linear in the map, so that what follows
them can take the map itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops.fuse import fold_fc_group_conv, widened

# Channels that a vector of a CPU holds: a group convolution with fewer outputs leaves it empty.
_VECTOR = 16


@dataclass(frozen=True)
class Connected:
    """A projection to R maps for each of d channels, and the group convolution that takes them.

    Attributes:
        weight: of the projection (d, R, C_in).
        bias: of the projection (d, R).
        kernels: of the convolution with d groups (d N, R, K, K).
    """

    weight: Tensor
    bias: Tensor
    kernels: Tensor

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return both layers as one: (d N, C_in, K, K), and what a map of ones adds (d N, 1, K, K).

        The bias of the projection ends where the map does: zero padding cuts it off.
        """
        kernels = self.kernels.unflatten(0, (self.weight.shape[0], -1))
        weight = torch.einsum("dnrhw,dri->dnihw", kernels, self.weight)
        border = torch.einsum("dnrhw,dr->dnhw", kernels, self.bias)
        return weight.flatten(0, 1), border.flatten(0, 1).unsqueeze(1)


def connected(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    dep_weight: Tensor,
    *,
    head_dim: int,
) -> Connected:
    """Fold the fully connected layer into the projections, or into the convolution if J < K^2.

    Args:
        weights: of the projections to q, k and v, (d times groups, C_in, 1, 1) each.
        biases: of the projections, (d times groups,) or None each.
        fc_weight: (M, J) or (M, J, 1, 1).
        fc_bias: (M,) or None.
        dep_weight: kernels of the group convolution (d N, M, K, K).
        head_dim: d.

    Returns:
        Weights in float32 at least, so that they are rounded once.
    """
    weights = [widened(w) for w in weights]
    fc, dep_weight = widened(fc_weight.flatten(1)), widened(dep_weight)
    groups = torch.cat([w.flatten(1) for w in weights]).unflatten(0, (-1, head_dim))  # (J, d, C_in)
    filled = (
        w.new_zeros(w.shape[0]) if b is None else widened(b)
        for w, b in zip(weights, biases, strict=True)
    )
    offsets = torch.cat(list(filled)).unflatten(0, (-1, head_dim))
    if fc.shape[1] < fc.shape[0] and fc_bias is None:
        kernels = fold_fc_group_conv(fc, dep_weight, groups=head_dim)
        return Connected(groups.transpose(0, 1), offsets.transpose(0, 1), kernels)
    weight = torch.einsum("mj,jdi->dmi", fc, groups)
    bias = torch.einsum("mj,jd->dm", fc, offsets)
    return Connected(weight, bias if fc_bias is None else bias + widened(fc_bias), dep_weight)


def connectable(
    maps: Sequence[Tensor], fc_weight: Tensor, fc_bias: Tensor | None, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Return the groups (B, d, J, H, W) and the weight (M, J) that connects them.

    A bias becomes one more group of ones, so that zero padding cuts it off at the border.
    """
    weight = fc_weight.flatten(1)
    if fc_bias is not None:
        weight = torch.cat([weight, fc_bias[:, None]], dim=1)
    return interleaved(maps, head_dim, ones=fc_bias is not None), weight


def interleaved(maps: Sequence[Tensor], head_dim: int, *, ones: bool) -> Tensor:
    """Return the groups beside one another in each channel: (B, d, J, H, W)."""
    groups = [x.unflatten(1, (-1, head_dim)).transpose(1, 2) for x in maps]
    if ones:
        groups.append(torch.ones_like(groups[0][:, :, :1]))
    return torch.cat(groups, dim=2)


def merged_groups(groups: int, outputs: int) -> int:
    """Return how many groups of ``outputs`` channels a CPU convolves at once, most quickly."""
    merged = 1
    while groups % (2 * merged) == 0 and 2 * merged * outputs <= _VECTOR:
        merged *= 2
    return merged


def merge_groups(kernels: Tensor, *, groups: int, merged: int) -> Tensor:
    """Return the kernels of as many groups as one, with zeros between what was apart.

    Args:
        kernels: (d N, R, K, K).
        groups: d.
        merged: m, divides d.

    Returns:
        (d N, m R, K, K), for d / m groups.
    """
    if merged == 1:
        return kernels
    apart = kernels.unflatten(0, (groups // merged, merged, -1)).unsqueeze(3)
    own = torch.eye(merged, dtype=kernels.dtype, device=kernels.device)
    # (d / m, m, N, m, R, K, K): of the m sets of inputs, each of the m sets of outputs has its own
    return (apart * own[:, None, :, None, None, None]).flatten(3, 4).flatten(0, 2)
