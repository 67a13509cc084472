"""The convolution path of ACmix from q, k and v: the public functions and their paths.

B batch, H W size of the map, J groups of d channels each (those of q, then of k, then of v), M =
K^2 maps per channel, N outputs per channel, K kernel, s stride. Maps are (B, C, H, W) with the
channels of each group adjacent in C. The channels of the result have the order (d, N), as in
published checkpoints.

| path        | computes                                                                        |
|-------------|---------------------------------------------------------------------------------|
| "folded"    | both layers as one convolution from J to N maps in each of d groups             |
| "grouped"   | the fully connected layer, then the convolution from M to N maps in each group  |
| "reference" | the formula: K^2 copies of the M maps, einsum                                   |

`convattn.ops.acmix.from_map` computes the same result from the input map of q, k and v.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_positive
from convattn.ops.acmix.checks import (
    check_folded,
    check_groups,
    check_kernels,
    check_maps,
    check_square,
)
from convattn.ops.acmix.folding import connectable, interleaved
from convattn.ops.dispatch import Call, Operator, Path
from convattn.ops.fuse import fold_fc_group_conv
from convattn.ops.reference import acmix as reference


@dataclass
class ConvolutionCall(Call):
    """Arguments of `acmix_convolution`, checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    fc_weight: Tensor
    dep_weight: Tensor
    fc_bias: Tensor | None
    head_dim: int
    stride: int
    dilation: int

    @property
    def groups(self) -> int:
        """The number of groups J."""
        return self.fc_weight.shape[1]

    @property
    def outputs(self) -> int:
        """The number of outputs per channel N."""
        return self.dep_weight.shape[0] // self.head_dim

    @property
    def kernel_size(self) -> int:
        """The kernel size K."""
        return self.dep_weight.shape[3]


@dataclass
class LayersCall(Call):
    """Sizes of a fully connected layer and a group convolution that are folded once."""

    groups: int
    outputs: int
    kernel_size: int
    stride: int


def _is_less_work(call: ConvolutionCall | LayersCall) -> bool:
    """Whether J N K^2 <= J K^2 s^2 + N K^4: multiplications for each channel and pixel."""
    J, N, K = call.groups, call.outputs, call.kernel_size
    return J * call.stride**2 + N * K**2 >= J * N


def _convolve_folded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    dep_weight: Tensor,
    fc_bias: Tensor | None,
    *,
    head_dim: int,
    stride: int,
    dilation: int,
) -> Tensor:
    x, weight = connectable((q, k, v), fc_weight, fc_bias, head_dim)
    kernels = fold_fc_group_conv(weight, dep_weight, groups=head_dim)
    return convolve(x.flatten(1, 2), kernels, stride, dilation, groups=head_dim)


def _convolve_grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    dep_weight: Tensor,
    fc_bias: Tensor | None,
    *,
    head_dim: int,
    stride: int,
    dilation: int,
) -> Tensor:
    x, weight = connectable((q, k, v), fc_weight, fc_bias, head_dim)
    x = torch.einsum("mj,bdjhw->bdmhw", weight, x)
    return convolve(x.flatten(1, 2), dep_weight, stride, dilation, groups=head_dim)


# With a `LayersCall`, the choice between "folded" and "grouped" is made for a deployed layer.
ACMIX_CONVOLUTION: Operator[ConvolutionCall | LayersCall] = Operator(
    "acmix_convolution",
    Path("reference", reference.acmix_convolution, "the formula"),
    Path(
        "folded",
        _convolve_folded,
        "it has no more multiplications than the two layers: J N K^2 <= J K^2 s^2 + N K^4",
        prefers=_is_less_work,
    ),
    Path("grouped", _convolve_grouped, "it has fewer multiplications than the folded convolution"),
)


def acmix_convolution(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    dep_weight: Tensor,
    *,
    head_dim: int,
    fc_bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Convolve q, k and v: connect their groups into K^2 maps per channel, shift and sum those.

    ``f[c, m] = sum_j fc_weight[m, j] g_j[c] + fc_bias[m]``, g_j the groups of q, k and v;
    ``y[c, n, i] = sum_m sum_t dep_weight[c N + n, m, t] f[c, m, s i + r (t - K // 2)]``, zero
    outside

    Args:
        q: queries (B, C_q, H, W).
        k: keys (B, C_k, H, W); the numbers of channels may differ.
        v: values (B, C_v, H, W).
        fc_weight: (K^2, J) or (K^2, J, 1, 1), the same for all channels of a group.
        dep_weight: kernels of the group convolution (d N, K^2, K, K).
        head_dim: d.
        fc_bias: (K^2,) or None.
        stride: s.
        dilation: r.
        backend: "auto", "folded", "grouped" or "reference". "auto" takes "folded" unless it has
            more multiplications per channel and pixel: J N K^2 > J K^2 s^2 + N K^4.

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), "Improved Shift and Summation". The published code ignores the
    dilation.
    """
    check_groups(q, k, v, fc_weight, fc_bias, head_dim, stride, dilation)
    check_kernels(dep_weight, fc_weight.shape[0], head_dim)
    call = ConvolutionCall(q, k, v, fc_weight, dep_weight, fc_bias, head_dim, stride, dilation)
    return ACMIX_CONVOLUTION(call, backend)


def folded_convolution(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernels: Tensor,
    *,
    head_dim: int,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Compute ``acmix_convolution`` with the folded kernels of `fuse.fold_fc_group_conv`.

    ``y[c, n, i] = sum_j sum_t kernels[c N + n, j, t] g_j[c, s i + r (t - K // 2)]``, g_j the groups
    of q, k and v. If ``kernels`` has J + 1 groups, the last group is 1: the bias of the layer

    Args:
        q: queries (B, C_q, H, W).
        k: keys (B, C_k, H, W); the numbers of channels may differ.
        v: values (B, C_v, H, W).
        kernels: (d N, J, K, K), or (d N, J + 1, K, K) with a bias.
        head_dim: d.
        stride: s.
        dilation: r.

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes or sizes that do not fit.

    ACmix (arXiv 2111.14556), the convolution path.
    """
    groups = check_maps(q, k, v, head_dim, stride, dilation)
    check_folded(kernels, groups, head_dim)
    x = interleaved((q, k, v), head_dim, ones=kernels.shape[1] > groups).flatten(1, 2)
    return convolve(x, kernels, stride, dilation, groups=head_dim)


def shift_convolution(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    *,
    head_dim: int,
    num_outputs: int,
    fc_bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Compute ``acmix_convolution`` with the kernels of ``shift_kernels``, by shifting tensors.

    ``y[c, n, i] = sum_m f[c, m, s i + r (t_m - K // 2)]``, t_m = (m // K, m % K), zero outside

    Args:
        q: queries (B, C_q, H, W).
        k: keys (B, C_k, H, W).
        v: values (B, C_v, H, W).
        fc_weight: (K^2, J) or (K^2, J, 1, 1).
        head_dim: d.
        num_outputs: N, outputs per channel, which are equal.
        fc_bias: (K^2,) or None.
        stride: s.
        dilation: r.

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), "Improved Shift and Summation": the tensor shifts that are the
    baseline of its ablation.
    """
    check_groups(q, k, v, fc_weight, fc_bias, head_dim, stride, dilation)
    check_positive("num_outputs", num_outputs)
    kernel_size, (H, W) = check_square(fc_weight.shape[0]), q.shape[2:]
    x, weight = connectable((q, k, v), fc_weight, fc_bias, head_dim)
    features = torch.einsum("mj,bdjhw->mbdhw", weight, x)
    reach = dilation * (kernel_size // 2)
    total = torch.zeros_like(features[0])
    for m, shifted in enumerate(F.pad(features, (reach, reach, reach, reach)).unbind()):
        top, left = dilation * (m // kernel_size), dilation * (m % kernel_size)
        total = total + shifted[..., top : top + H, left : left + W]
    return total[..., ::stride, ::stride].repeat_interleave(num_outputs, dim=1)


def convolve(x: Tensor, kernels: Tensor, stride: int, dilation: int, groups: int = 1) -> Tensor:
    """Convolve a map with zero padding, so that a stride of 1 keeps the size of the map."""
    padding = dilation * (int(kernels.shape[3]) // 2)  # sizes are tensors where a model is traced
    return F.conv2d(x, kernels, None, stride, padding, dilation, groups)
