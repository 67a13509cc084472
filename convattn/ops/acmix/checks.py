"""Checks of the arguments of ACmix's convolution path.

J groups of d channels each, of q, then of k, then of v; K^2 maps and N outputs per channel.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convattn.checks import check_divisible, check_map, check_odd, check_positive, check_tensor


def check_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    head_dim: int,
    stride: int,
    dilation: int,
) -> int:
    """Raise an error unless the fully connected layer takes the maps' groups; return J."""
    groups = check_maps(q, k, v, head_dim, stride, dilation)
    check_layer(fc_weight, fc_bias, groups, head_dim)
    return groups


def check_layer(fc_weight: Tensor, fc_bias: Tensor | None, groups: int, head_dim: int) -> None:
    """Raise an error unless the fully connected layer takes J groups."""
    check_tensor("fc_weight", fc_weight)
    if fc_weight.shape[1:] not in ((groups,), (groups, 1, 1)):
        raise ValueError(
            f"fc_weight must take the {groups} groups of {head_dim} channels in q, k and v and "
            f"have shape (K^2, {groups}) or (K^2, {groups}, 1, 1), got {tuple(fc_weight.shape)}"
        )
    if fc_bias is not None:
        check_tensor("fc_bias", fc_bias)
        if fc_bias.shape != fc_weight.shape[:1]:
            raise ValueError(
                f"fc_bias must have shape ({fc_weight.shape[0]},), one for each map that "
                f"fc_weight gives, got {tuple(fc_bias.shape)}"
            )


def check_maps(q: Tensor, k: Tensor, v: Tensor, head_dim: int, stride: int, dilation: int) -> int:
    """Raise an error unless the maps have one size and groups of d channels; return J."""
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_map(x, name)
    groups = check_widths([q.shape[1], k.shape[1], v.shape[1]], head_dim)
    if not q.shape[2:] == k.shape[2:] == v.shape[2:]:
        raise ValueError(
            f"q, k and v must have one size, got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )
    return groups


def check_widths(channels: Sequence[int], head_dim: int) -> int:
    """Raise an error unless q, k and v have groups of d channels; return J."""
    for name, width in zip("qkv", channels, strict=True):
        check_divisible(f"channels of {name}", width, "head_dim", head_dim)
    return sum(width // head_dim for width in channels)


def check_kernels(dep_weight: Tensor, maps: int, head_dim: int) -> None:
    """Raise an error unless kernels are square, odd, and fit ``maps`` maps per channel."""
    check_tensor("dep_weight", dep_weight)
    if dep_weight.dim() != 4 or dep_weight.shape[2] != dep_weight.shape[3]:
        raise ValueError(
            f"dep_weight must have shape (d N, K^2, K, K), got {tuple(dep_weight.shape)}"
        )
    outputs, taken, kernel_size, _ = dep_weight.shape
    check_odd("kernel size of dep_weight", kernel_size)
    if taken != maps:
        raise ValueError(
            f"dep_weight must take the {maps} maps that fc_weight gives, "
            f"got shape {tuple(dep_weight.shape)}"
        )
    check_divisible("outputs of dep_weight", outputs, "head_dim", head_dim)


def check_folded(kernels: Tensor, groups: int, head_dim: int) -> None:
    """Raise an error unless kernels are square, odd, and fit J groups, or J + 1 with a bias."""
    check_tensor("kernels", kernels)
    fits = kernels.dim() == 4 and kernels.shape[2] == kernels.shape[3]
    if not fits or kernels.shape[1] not in (groups, groups + 1):
        raise ValueError(
            f"kernels must have shape (d N, {groups}, K, K), or {groups + 1} in place of {groups} "
            f"with a bias, got {tuple(kernels.shape)}"
        )
    check_odd("kernel size of kernels", kernels.shape[3])
    check_divisible("outputs of kernels", kernels.shape[0], "head_dim", head_dim)


def check_square(maps: int) -> int:
    """Raise an error unless the number of maps is K^2 with an odd K; return K."""
    kernel_size = round(maps**0.5)
    if kernel_size**2 != maps or kernel_size % 2 == 0:
        raise ValueError(f"fc_weight must give K^2 maps of an odd K, got {maps}")
    return kernel_size
