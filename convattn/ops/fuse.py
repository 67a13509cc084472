"""Weight arithmetic: kernels that shift, and layers with nothing between them as one.

d channels of a group, J groups that a fully connected layer takes, N outputs per channel of a
group, K kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._checks import check_divisible, check_odd
from convattn.ops._script import scriptable


@scriptable(
    "(int kernel_size, int out_chans, *, Device? device=None, ScalarType? dtype=None) -> Tensor"
)
def shift_kernels(
    kernel_size: int,
    out_chans: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return kernels that move K^2 maps to the K^2 places of a K x K kernel and add them.

    ``kernels[o, m, i, j] = 1 if (i, j) == (m // K, m % K) else 0``

    Args:
        kernel_size: K, odd.
        out_chans: number of outputs, all alike.
        device: where to make them.
        dtype: their type.

    Returns:
        Kernels (out_chans, K^2, K, K): an expanded view, to be copied before writing.

    Raises:
        ValueError: an even kernel.

    ACmix (arXiv 2111.14556), "Improved Shift and Summation": where the kernels of its group
    convolution start.
    """
    check_odd("kernel_size", kernel_size)
    one_hot = torch.eye(kernel_size**2, device=device, dtype=dtype)
    return one_hot.unflatten(1, (kernel_size, kernel_size)).expand(out_chans, -1, -1, -1)


def fold_fc_group_conv(fc_weight: Tensor, dep_weight: Tensor, *, groups: int) -> Tensor:
    """Fold a fully connected layer and the group convolution that follows it into one convolution.

    ``kernel[g n, j] = sum_m dep_weight[g n, m] * fc_weight[m, j]``

    The folded convolution takes the J groups channel by channel: input channel ``g J + j`` is
    channel g of group j. A bias of the fully connected layer is one more group that is 1 inside
    the map, with the bias as its column of ``fc_weight``: zero padding then cuts it off at the
    border as it does the layer's output.

    Args:
        fc_weight: the layer (M, J) or (M, J, 1, 1).
        dep_weight: the group convolution (d N, M, K, K).
        groups: d.

    Returns:
        Kernels (d N, J, K, K) of a convolution with ``groups`` groups.

    Raises:
        ValueError: shapes that do not fit.

    ACmix (arXiv 2111.14556), the convolution path. The published code keeps the two layers apart.
    """
    check_divisible("outputs of dep_weight", dep_weight.shape[0], "groups", groups)
    if fc_weight.shape[0] != dep_weight.shape[1]:
        raise ValueError(
            f"dep_weight must take the maps that fc_weight gives, got dep_weight "
            f"{tuple(dep_weight.shape)} and fc_weight {tuple(fc_weight.shape)}"
        )
    return torch.einsum("omhw,mj->ojhw", dep_weight, fc_weight.flatten(1))
