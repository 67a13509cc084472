"""The convolution path of ACmix: public functions, choice of path.

B batch, H W size of the map, J groups of d channels each (those of q, then of k, then of v), M =
K^2 maps per channel, N outputs per channel, K kernel, s stride. Maps are (B, C, H, W) with the
groups one after another in C; the result has its channels in the order (d, N), as published
checkpoints do.

| backend     | computes                                                                        |
|-------------|---------------------------------------------------------------------------------|
| "folded"    | both layers as one convolution from J to N maps in each of d groups             |
| "grouped"   | the fully connected layer, then the convolution from M to N maps in each group  |
| "reference" | the formula: K^2 copies of the M maps, einsum                                   |

From the map x that q, k and v are projections of, without a look at them:

| path        | computes                                                                        |
|-------------|---------------------------------------------------------------------------------|
| "dense"     | projections and both layers as one convolution of x                             |
| "connected" | a projection of x to the M maps per channel, then their group convolution       |
| "projected" | what the first table says, from q, k and v                                      |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_choice, check_positive
from convattn.ops.acmix.checks import (
    check_folded,
    check_groups,
    check_kernels,
    check_layer,
    check_maps,
    check_projections,
    check_square,
    check_widths,
)
from convattn.ops.acmix.folding import connectable, connected, interleaved
from convattn.ops.acmix.paths import RULES as RULES
from convattn.ops.acmix.paths import Widths as Widths
from convattn.ops.acmix.paths import folding_pays as folding_pays
from convattn.ops.fuse import fold_fc_group_conv
from convattn.ops.old_dispatch import exporting, resolve
from convattn.ops.reference import acmix as reference

BACKENDS = ("folded", "grouped", "reference")


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
        backend: "auto", "folded", "grouped" or "reference". "auto" folds while that is no more
            work: J N K^2 multiplications for each channel and pixel against J K^2 s^2 + N K^4.

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), "Improved Shift and Summation". The published code ignores the
    dilation.
    """
    groups = check_groups(q, k, v, fc_weight, fc_bias, head_dim, stride, dilation)
    check_kernels(dep_weight, fc_weight.shape[0], head_dim)
    chosen = resolve(backend, BACKENDS)
    if chosen == "reference":
        return reference.acmix_convolution(
            q,
            k,
            v,
            fc_weight,
            dep_weight,
            head_dim=head_dim,
            fc_bias=fc_bias,
            stride=stride,
            dilation=dilation,
        )
    if chosen == "auto":
        outputs, kernel_size = dep_weight.shape[0] // head_dim, dep_weight.shape[3]
        pays = folding_pays(groups, outputs, kernel_size, stride)
        chosen = "folded" if pays else "grouped"
    x, weight = connectable((q, k, v), fc_weight, fc_bias, head_dim)
    if chosen == "folded":
        kernels = fold_fc_group_conv(weight, dep_weight, groups=head_dim)
    else:
        x, kernels = torch.einsum("mj,bdjhw->bdmhw", weight, x), dep_weight
    return _convolve(x.flatten(1, 2), kernels, stride, dilation, groups=head_dim)


def convolution_path(
    x: Tensor,
    *,
    head_dim: int,
    out_chans: int,
    stride: int = 1,
    alone: bool = False,
    backend: str = "auto",
) -> str:
    """Say how to convolve: "dense" or "connected" take ``x``, "projected" its q, k and v.

    Args:
        x: the map (B, C_in, H, W) that q, k and v are projections of.
        head_dim: d.
        out_chans: d N.
        stride: s.
        alone: whether nothing else needs q, k and v.
        backend: of ``acmix_convolution``; whoever names one wants it for q, k and v.
    """
    if resolve(backend, BACKENDS) != "auto":
        return "projected"
    case = Widths(x.device.type, x.shape[1], out_chans // head_dim, stride, alone, exporting())
    return next(path for path, fits, _ in RULES if fits(case))


def map_convolution(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    fc_weight: Tensor,
    dep_weight: Tensor,
    *,
    head_dim: int,
    fc_bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    path: str = "dense",
) -> Tensor:
    """Compute ``acmix_convolution`` from the map that q, k and v are projected from.

    Args:
        x: the map (B, C_in, H, W).
        weights: of the 1x1 convolutions that make q, k and v, (C_q, C_in, 1, 1) and so on.
        biases: of the same, (C_q,) and so on, or None.
        fc_weight: (K^2, J) or (K^2, J, 1, 1).
        dep_weight: kernels of the group convolution (d N, K^2, K, K).
        head_dim: d.
        fc_bias: (K^2,) or None.
        stride: s.
        dilation: r.
        path: "dense" or "connected".

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a path that do not fit.

    ACmix (arXiv 2111.14556), the convolution path; that the projections can be folded too is ours.
    """
    check_choice("path", path, ("dense", "connected"))
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_projections(x, weights, biases)
    groups = check_widths([w.shape[0] for w in weights], head_dim)
    check_layer(fc_weight, fc_bias, groups, head_dim)
    check_kernels(dep_weight, fc_weight.shape[0], head_dim)
    folded = connected(weights, biases, fc_weight, fc_bias, dep_weight, head_dim=head_dim)
    if path == "connected":
        weight = folded.weight.flatten(0, 1)[:, :, None, None]
        maps = F.conv2d(x, weight.to(x.dtype), folded.bias.flatten().to(x.dtype))
        return _convolve(maps, folded.kernels.to(x.dtype), stride, dilation, groups=head_dim)
    kernels, border = (w.to(x.dtype) for w in folded.dense())
    ones = x.new_ones(1, 1, x.shape[2], x.shape[3])
    offset = _convolve(ones, border, stride, dilation)
    return _convolve(x, kernels, stride, dilation) + offset


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
    """Compute ``acmix_convolution`` with kernels that `fuse.fold_fc_group_conv` made before.

    ``y[c, n, i] = sum_j sum_t kernels[c N + n, j, t] g_j[c, s i + r (t - K // 2)]``, g_j the groups
    of q, k and v, and a last one of ones where ``kernels`` has one more: the bias of the layer

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
    return _convolve(x, kernels, stride, dilation, groups=head_dim)


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
    """Compute ``acmix_convolution`` with the kernels of ``shift_kernels``, by moving tensors.

    ``y[c, n, i] = sum_m f[c, m, s i + r (t_m - K // 2)]``, t_m = (m // K, m % K), zero outside

    Args:
        q: queries (B, C_q, H, W).
        k: keys (B, C_k, H, W).
        v: values (B, C_v, H, W).
        fc_weight: (K^2, J) or (K^2, J, 1, 1).
        head_dim: d.
        num_outputs: N, outputs per channel, all alike.
        fc_bias: (K^2,) or None.
        stride: s.
        dilation: r.

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: maps that are not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a backend that do not fit.

    ACmix (arXiv 2111.14556), "Improved Shift and Summation": the tensor shifts that its ablation
    starts from.
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


def _convolve(x: Tensor, kernels: Tensor, stride: int, dilation: int, groups: int = 1) -> Tensor:
    padding = dilation * (int(kernels.shape[3]) // 2)  # sizes are tensors where a model is traced
    return F.conv2d(x, kernels, None, stride, padding, dilation, groups)
