"""The convolution path of ACmix: public functions, argument checks, choice of path.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._acmix_kernels import check_projections, connected
from convattn.ops._backend import exporting, resolve
from convattn.ops._checks import (
    check_choice,
    check_divisible,
    check_map,
    check_odd,
    check_positive,
    check_tensor,
)
from convattn.ops._script import scriptable
from convattn.ops.fuse import fold_fc_group_conv
from convattn.ops.reference import acmix as reference

BACKENDS = ("folded", "grouped", "reference")


@dataclass(frozen=True)
class Widths:
    """What the path of the convolution depends on: no size of a map, so none is guarded on."""

    device: str
    in_chans: int
    outputs: int  # N
    stride: int
    alone: bool  # whether nothing else needs q, k and v
    exporting: bool = False


# (path, when, the benchmark behind it): forward and backward, float32, batch 8, on one core, of
# projections and convolution. The copies of q, k and v to (d, J) cost as much as 128 channels of a
# dense convolution do, a stride of 2 makes that four times as many.
RULES: tuple[tuple[str, Callable[[Widths], bool], str], ...] = (
    ("projected", lambda case: case.exporting, "plain operators, as the layer is written"),
    ("projected", lambda case: case.device != "cpu", "not measured"),
    (
        "dense",
        lambda case: case.in_chans <= 128 * case.stride**2,
        "(64, 56) 53 ms against 95 projected; (128, 56) with stride 2 90, 182; (128, 28) 43, 52",
    ),
    (
        "connected",
        lambda case: case.alone or case.outputs > 4,
        "(192, 28), N = 6: 58 ms against 66 projected, 84 dense; (384, 14), N = 12: 29, 39, 75",
    ),
    ("projected", lambda case: True, "(256, 14), N = 4: 26 ms against 27 connected, 41 dense"),
)


@scriptable(
    "(Tensor q, Tensor k, Tensor v, Tensor fc_weight, Tensor dep_weight, *, int head_dim, "
    "Tensor? fc_bias=None, int stride=1, int dilation=1, str backend='auto') -> Tensor"
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
    groups = _check(q, k, v, fc_weight, fc_bias, head_dim, stride, dilation)
    outputs, kernel_size = _check_kernels(dep_weight, fc_weight.shape[0])
    check_divisible("outputs of dep_weight", outputs, "head_dim", head_dim)
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
        pays = folding_pays(groups, outputs // head_dim, kernel_size, stride)
        chosen = "folded" if pays else "grouped"
    padding = dilation * (int(kernel_size) // 2)  # sizes are tensors where a model is traced
    x, weight = _connectable((q, k, v), fc_weight, fc_bias, head_dim)
    if chosen == "folded":
        kernels = fold_fc_group_conv(weight, dep_weight, groups=head_dim)
    else:
        x, kernels = torch.einsum("mj,bdjhw->bdmhw", weight, x), dep_weight
    return F.conv2d(x.flatten(1, 2), kernels, None, stride, padding, dilation, groups=head_dim)


@scriptable(
    "(Tensor x, *, int head_dim, int out_chans, int stride=1, bool alone=False, "
    "str backend='auto') -> str"
)
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


@scriptable(
    "(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor fc_weight, Tensor dep_weight, *, "
    "int head_dim, Tensor? fc_bias=None, int stride=1, int dilation=1, str path='dense') -> Tensor"
)
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
    check_projections(x, weights, biases)
    check_choice("path", path, ("dense", "connected"))
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    for name, weight in zip("qkv", weights, strict=True):
        check_divisible(f"channels of {name}", weight.shape[0], "head_dim", head_dim)
    _check_layer(fc_weight, fc_bias, sum(w.shape[0] for w in weights) // head_dim, head_dim)
    outputs, kernel_size = _check_kernels(dep_weight, fc_weight.shape[0])
    check_divisible("outputs of dep_weight", outputs, "head_dim", head_dim)
    folded = connected(weights, biases, fc_weight, fc_bias, dep_weight, head_dim=head_dim)
    padding = dilation * (int(kernel_size) // 2)
    if path == "connected":
        weight = folded.weight.flatten(0, 1)[:, :, None, None]
        maps = F.conv2d(x, weight.to(x.dtype), folded.bias.flatten().to(x.dtype))
        kernels = folded.kernels.to(x.dtype)
        return F.conv2d(maps, kernels, None, stride, padding, dilation, groups=head_dim)
    kernels, border = (w.to(x.dtype) for w in folded.dense())
    ones = x.new_ones(1, 1, x.shape[2], x.shape[3])
    offset = F.conv2d(ones, border, None, stride, padding, dilation)
    return F.conv2d(x, kernels, None, stride, padding, dilation) + offset


def folding_pays(groups: int, num_outputs: int, kernel_size: int, stride: int = 1) -> bool:
    """Say whether the folded convolution has no more multiplications than the two layers.

    ``J N K^2 <= J K^2 s^2 + N K^4``

    Args:
        groups: J.
        num_outputs: N, outputs per channel of a group.
        kernel_size: K.
        stride: s.
    """
    return groups * num_outputs <= groups * stride**2 + num_outputs * kernel_size**2


@scriptable(
    "(Tensor q, Tensor k, Tensor v, Tensor kernels, *, int head_dim, int stride=1, "
    "int dilation=1) -> Tensor"
)
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
    groups = _check_maps(q, k, v, head_dim, stride, dilation)
    check_tensor("kernels", kernels)
    fits = kernels.dim() == 4 and kernels.shape[2] == kernels.shape[3]
    if not fits or kernels.shape[1] not in (groups, groups + 1):
        raise ValueError(
            f"kernels must have shape (d N, {groups}, K, K), or {groups + 1} in place of {groups} "
            f"with a bias, got {tuple(kernels.shape)}"
        )
    outputs, taken, kernel_size, _ = kernels.shape
    check_odd("kernel size of kernels", kernel_size)
    check_divisible("outputs of kernels", outputs, "head_dim", head_dim)
    x = _interleaved((q, k, v), head_dim, ones=taken > groups).flatten(1, 2)
    padding = dilation * (int(kernel_size) // 2)
    return F.conv2d(x, kernels, None, stride, padding, dilation, groups=head_dim)


@scriptable(
    "(Tensor q, Tensor k, Tensor v, Tensor fc_weight, *, int head_dim, int num_outputs, "
    "Tensor? fc_bias=None, int stride=1, int dilation=1) -> Tensor"
)
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
    _check(q, k, v, fc_weight, fc_bias, head_dim, stride, dilation)
    check_positive("num_outputs", num_outputs)
    maps, (H, W) = fc_weight.shape[0], q.shape[2:]
    kernel_size = round(maps**0.5)
    if kernel_size**2 != maps or kernel_size % 2 == 0:
        raise ValueError(f"fc_weight must give K^2 maps of an odd K, got {maps}")
    x, weight = _connectable((q, k, v), fc_weight, fc_bias, head_dim)
    features = torch.einsum("mj,bdjhw->mbdhw", weight, x)
    reach = dilation * (kernel_size // 2)
    total = torch.zeros_like(features[0])
    for m, shifted in enumerate(F.pad(features, (reach, reach, reach, reach)).unbind()):
        top, left = dilation * (m // kernel_size), dilation * (m % kernel_size)
        total = total + shifted[..., top : top + H, left : left + W]
    return total[..., ::stride, ::stride].repeat_interleave(num_outputs, dim=1)


def _connectable(
    maps: Sequence[Tensor], fc_weight: Tensor, fc_bias: Tensor | None, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Return the groups (B, d, J, H, W) and the weight (M, J) that connects them.

    A bias becomes one more group of ones, so that zero padding cuts it off at the border.
    """
    weight = fc_weight.flatten(1)
    if fc_bias is not None:
        weight = torch.cat([weight, fc_bias[:, None]], dim=1)
    return _interleaved(maps, head_dim, ones=fc_bias is not None), weight


def _interleaved(maps: Sequence[Tensor], head_dim: int, *, ones: bool) -> Tensor:
    """Return the groups beside one another in each channel: (B, d, J, H, W)."""
    groups = [x.unflatten(1, (-1, head_dim)).transpose(1, 2) for x in maps]
    if ones:
        groups.append(torch.ones_like(groups[0][:, :, :1]))
    return torch.cat(groups, dim=2)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    head_dim: int,
    stride: int,
    dilation: int,
) -> int:
    """Raise unless the maps are groups that the layer takes; return their number J."""
    groups = _check_maps(q, k, v, head_dim, stride, dilation)
    _check_layer(fc_weight, fc_bias, groups, head_dim)
    return groups


def _check_layer(fc_weight: Tensor, fc_bias: Tensor | None, groups: int, head_dim: int) -> None:
    """Raise unless the fully connected layer takes J groups."""
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


def _check_maps(q: Tensor, k: Tensor, v: Tensor, head_dim: int, stride: int, dilation: int) -> int:
    """Raise unless the maps are of one size, in groups of d channels; return their number J."""
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    groups = 0
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_map(x, name)
        check_divisible(f"channels of {name}", x.shape[1], "head_dim", head_dim)
        groups += x.shape[1] // head_dim
    if not q.shape[2:] == k.shape[2:] == v.shape[2:]:
        raise ValueError(
            f"q, k and v must have one size, got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )
    return groups


def _check_kernels(dep_weight: Tensor, maps: int) -> tuple[int, int]:
    """Raise unless these are square, odd kernels for ``maps`` maps; return d N and K."""
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
    return outputs, kernel_size
