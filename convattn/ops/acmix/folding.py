"""Fold the weights of ACmix's convolution path, so that it reads the input map of q, k and v.

C_in channels of the input map, J groups of d channels (of q, then of k, then of v), M = K^2 maps
per channel, N outputs per channel, K kernel size. The projections to q, k and v are linear, so that
they can be folded into the layers that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops import tuned
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.fuse import fold_fc_group_conv, widened


@dataclass(frozen=True)
class Connected:
    """A projection to R maps for each of d channels, and a group convolution of these maps.

    Attributes:
        weight: weight of the projection (d, R, C_in).
        bias: bias of the projection (d, R).
        kernels: weight of the convolution with d groups (d N, R, K, K).
    """

    weight: Tensor
    bias: Tensor
    kernels: Tensor

    def dense(self) -> tuple[Tensor, Tensor]:
        """Fold both layers into one convolution.

        The convolution pads with zeros after the projection, so that the bias of the projection is
        0 outside the map. The border kernels convolve a map of ones, which is padded in this way.

        Returns:
            The kernels (d N, C_in, K, K), and the border kernels (d N, 1, K, K).
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
    """Fold the fully connected layer into the projections or into the convolution.

    The convolution is taken if J < K^2 and the layer has no bias.

    Args:
        weights: weights of the projections to q, k and v, (d times groups, C_in, 1, 1) each.
        biases: biases of the projections, (d times groups,) or None each.
        fc_weight: (M, J) or (M, J, 1, 1).
        fc_bias: (M,) or None.
        dep_weight: weight of the group convolution (d N, M, K, K).
        head_dim: d.

    Returns:
        The two layers; the weights are float32 or float64, so that they are rounded once.
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
    """Return the groups (B, d, J, H, W), and the weight (M, J) of the layer that connects them.

    A bias becomes one more group, of ones, so that the bias is 0 in the zero padding.
    """
    weight = fc_weight.flatten(1)
    if fc_bias is not None:
        weight = torch.cat([weight, fc_bias[:, None]], dim=1)
    return interleaved(maps, head_dim, ones=fc_bias is not None), weight


def interleaved(maps: Sequence[Tensor], head_dim: int, *, ones: bool) -> Tensor:
    """Return channel c of all groups, then channel c + 1 of all groups: (B, d, J, H, W).

    ``ones`` appends a group of ones.
    """
    groups = [x.unflatten(1, (-1, head_dim)).transpose(1, 2) for x in maps]
    if ones:
        groups.append(torch.ones_like(groups[0][:, :, :1]))
    return torch.cat(groups, dim=2)


def merge_groups(kernels: Tensor, *, groups: int, merged: int) -> Tensor:
    """Merge each m neighbouring groups of a convolution into one group.

    The weights between different original groups are 0.

    Args:
        kernels: weight of the convolution (d N, R, K, K).
        groups: d.
        merged: m, divides d.

    Returns:
        (d N, m R, K, K), for d / m groups.
    """
    if merged == 1:
        return kernels
    single = kernels.unflatten(0, (groups // merged, merged, -1)).unsqueeze(3)
    own = torch.eye(merged, dtype=kernels.dtype, device=kernels.device)
    # (d / m, m, N, m, R, K, K): 0 unless outputs and inputs belong to the same original group
    return (single * own[:, None, :, None, None, None]).flatten(3, 4).flatten(0, 2)


@dataclass(frozen=True)
class Folded:
    """Weights of the convolution path in the deployed form, which reads a map (B, C_in, H, W).

    ``y = conv(connect(x)) + border * 1``, where ``border * 1`` is the convolution of a map of ones

    Attributes:
        kernels: weight of ``conv``.
        groups: number of groups of ``conv``.
        connect: weight (d R, C_in, 1, 1) and bias (d R,) of a 1x1 convolution, or None.
        border: weight (d N, 1, K, K) of the convolution of a map of ones, or None.
    """

    kernels: Tensor
    groups: int = 1
    connect: tuple[Tensor, Tensor] | None = None
    border: Tensor | None = None


@dataclass
class FoldCall(Call):
    """Sizes of a convolution path whose weights are folded once.

    The path has a projection from C_in channels to R maps for each of d channels, and a group
    convolution to N outputs for each of d channels.
    """

    in_chans: int
    head_dim: int
    maps: int
    outputs: int
    kernel_size: int
    stride: int

    @property
    def merged(self) -> int:
        """The number of neighbouring groups that are merged into one group."""
        merged = 1
        while (
            self.head_dim % (2 * merged) == 0 and 2 * merged * self.outputs <= tuned.MERGED_OUTPUTS
        ):
            merged *= 2
        return merged


def _is_dense_faster(call: FoldCall) -> bool:
    """Return whether one dense convolution is estimated to be faster than two layers.

    The estimate is the number of multiplications per pixel of the result.
    """
    C, taps = call.head_dim * call.outputs, call.kernel_size**2
    projection = call.head_dim * call.maps * call.in_chans * call.stride**2
    grouped = C * call.maps * call.merged * taps
    return C * call.in_chans * taps <= tuned.DENSE_SPEED * (projection + grouped)


def _as_dense(parts: Connected, merged: int) -> Folded:
    kernels, border = parts.dense()
    return Folded(kernels, border=border)


def _as_two(parts: Connected, merged: int) -> Folded:
    groups = parts.weight.shape[0]
    return Folded(
        merge_groups(parts.kernels, groups=groups, merged=merged),
        groups // merged,
        (parts.weight.flatten(0, 1)[:, :, None, None], parts.bias.flatten()),
    )


FOLD_MAP_CONVOLUTION: Operator[FoldCall] = Operator(
    "fold_map_convolution",
    Path("connected", _as_two, "one core: (128, 28x28) 10 ms, dense 15; (256, 14x14) 7, dense 14"),
    Path(
        "dense",
        _as_dense,
        "one core: (64, 56x56) 15 ms, connected 16; (128, 56x56), stride 2: 16, connected 48",
        prefers=_is_dense_faster,
    ),
)


def fold_map_convolution(parts: Connected, *, stride: int, backend: str = "auto") -> Folded:
    """Fold a projection and a group convolution into one or two convolutions, the faster form.

    Args:
        parts: the projection and the group convolution.
        stride: stride of the group convolution.
        backend: "auto", "dense" or "connected".
    """
    d, R, C_in = parts.weight.shape
    C, _, K, _ = parts.kernels.shape
    call = FoldCall(C_in, d, R, C // d, K, stride)
    return FOLD_MAP_CONVOLUTION.choose(call, backend).run(parts, call.merged)
