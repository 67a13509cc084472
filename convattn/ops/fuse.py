"""Weight arithmetic: convolution kernels that shift, and consecutive layers folded into one.

d channels of a group, J groups that a fully connected layer takes, N outputs per channel of a
group, K kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.checks import check_divisible, check_odd


def shift_kernels(
    kernel_size: int,
    out_chans: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return kernels that shift K^2 maps to the K^2 positions of a K x K kernel and add them.

    ``kernels[o, m, i, j] = 1 if (i, j) == (m // K, m % K) else 0``

    Args:
        kernel_size: K, odd.
        out_chans: number of outputs, which are equal.
        device: where to make them.
        dtype: their type.

    Returns:
        Kernels (out_chans, K^2, K, K): an expanded view; copy it before writing.

    Raises:
        ValueError: an even kernel size.

    ACmix (arXiv 2111.14556), "Improved Shift and Summation": the initial kernels of its group
    convolution.
    """
    check_odd("kernel_size", kernel_size)
    one_hot = torch.eye(kernel_size**2, device=device, dtype=dtype)
    return one_hot.unflatten(1, (kernel_size, kernel_size)).expand(out_chans, -1, -1, -1)


def fold_fc_group_conv(fc_weight: Tensor, dep_weight: Tensor, *, groups: int) -> Tensor:
    """Fold a fully connected layer and the group convolution that follows it into one convolution.

    ``kernel[g n, j] = sum_m dep_weight[g n, m] * fc_weight[m, j]``

    The folded convolution takes the J groups channel by channel: input channel ``g J + j`` is
    channel g of group j. A bias of the fully connected layer is one more group that is 1 inside
    the map, with the bias as its column of ``fc_weight``. The group is 0 in the zero padding, like
    the layer's output.

    Args:
        fc_weight: the layer (M, J) or (M, J, 1, 1).
        dep_weight: the group convolution (d N, M, K, K).
        groups: d.

    Returns:
        Kernels (d N, J, K, K) of a convolution with ``groups`` groups.

    Raises:
        ValueError: shapes that do not fit.

    ACmix (arXiv 2111.14556), the convolution path. The published code does not fold the layers.
    """
    check_divisible("outputs of dep_weight", dep_weight.shape[0], "groups", groups)
    if fc_weight.shape[0] != dep_weight.shape[1]:
        raise ValueError(
            f"dep_weight must take the maps that fc_weight gives, got dep_weight "
            f"{tuple(dep_weight.shape)} and fc_weight {tuple(fc_weight.shape)}"
        )
    return torch.einsum("omhw,mj->ojhw", dep_weight, fc_weight.flatten(1))


def batch_norm_factors(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift per channel of a batch norm in evaluation mode.

    ``norm(x) = scale x + shift``, ``scale = weight / sqrt(variance + eps)``,
    ``shift = bias - mean scale``

    Args:
        mean: running mean (C,).
        variance: running variance (C,).
        weight: learnt scale (C,); None for 1.
        bias: learnt bias (C,); None for 0.
        eps: the constant that is added to the variance.

    Returns:
        scale (C,) and shift (C,), in float32 or float64.
    """
    scale = (widened(variance) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def scale_outputs(weight: Tensor, scale: Tensor) -> Tensor:
    """Fold a factor of each output of a layer into the layer's weight.

    ``y = scale (W x)  =>  y = (scale W) x``

    Args:
        weight: of a convolution or a linear layer, or its bias: (C, ...).
        scale: (C,) or (1,).

    Returns:
        The scaled weight, in float32 or float64.
    """
    return widened(weight) * scale.reshape(-1, *[1] * (weight.dim() - 1))


def affine_before(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, *, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Fold a scale and a shift of the inputs of a layer into its weight and bias.

    ``y = W (scale x + shift) + b  =>  y = (W scale) x + (W shift + b)``; for a convolution this is
    exact at outputs that read no padding.

    Args:
        weight: of a convolution or a linear layer: (C_out, C_in / groups, ...).
        bias: (C_out,); None for 0.
        scale: (C_in,).
        shift: (C_in,).
        groups: of the convolution.

    Returns:
        The weight and the bias (C_out,), in float32 or float64.

    Raises:
        ValueError: factors for another number of inputs.
    """
    inputs = weight.shape[1] * groups
    if scale.shape != (inputs,) or shift.shape != (inputs,):
        raise ValueError(
            f"scale and shift must have one value for each of {inputs} inputs, got "
            f"{tuple(scale.shape)} and {tuple(shift.shape)}"
        )
    weight = widened(weight)
    scale, shift = (_as_weight(factor, weight, groups) for factor in (scale, shift))
    moved = (weight * shift).flatten(1).sum(1)
    return weight * scale, moved if bias is None else moved + bias


def _as_weight(factor: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Reshape factors of the inputs for the weight of a layer with groups."""
    outputs = weight.shape[0] // groups
    rows = factor.reshape(groups, 1, -1).expand(-1, outputs, -1).flatten(0, 1)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


def add_identity(weight: Tensor) -> Tensor:
    """Fold a residual connection around a depth-wise convolution into its kernels.

    ``y = x + DW(x)``: 1 is added to the centre of each kernel.

    Args:
        weight: (C, 1, K, K) with K odd.

    Returns:
        Kernels (C, 1, K, K), in float32 or float64.

    Raises:
        ValueError: kernels that are not depth-wise or have no centre.

    GLMix (arXiv 2411.14429), the position embedding and the FFN of its blocks.
    """
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must have shape (C, 1, K, K), got {tuple(weight.shape)}")
    check_odd("kernel size of weight", weight.shape[2])
    centre = torch.zeros_like(widened(weight))
    centre[:, :, weight.shape[2] // 2, weight.shape[2] // 2] = 1
    return weight + centre


def widened(x: Tensor) -> Tensor:
    """Return a tensor in float32 or float64, so that folding rounds once."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
