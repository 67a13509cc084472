"""The convolution path of ACmix on the input map of the projections to q, k and v.

B batch, C_in channels and H W size of the map; the other symbols are those of
`convattn.ops.acmix.convolution`. The projections are linear, so that they can be folded into the
convolution. Autograd computes the gradients of the projections through the folded weights.

| path                              | computes                                                  |
|-----------------------------------|-----------------------------------------------------------|
| "dense"                           | projections and both layers as one convolution of the map |
| "connected"                       | a projection to the M maps per channel, then the group    |
|                                   | convolution                                               |
| "projected"                       | q, k and v, then `acmix_convolution`                      |
| "folded", "grouped", "reference"  | q, k and v, then that path of `acmix_convolution`         |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from convattn.checks import check_choice, check_positive
from convattn.ops import tuned
from convattn.ops.acmix.checks import (
    check_kernels,
    check_layer,
    check_widths,
)
from convattn.ops.acmix.convolution import acmix_convolution, convolve
from convattn.ops.acmix.folding import connected
from convattn.ops.attention_checks import check_projections
from convattn.ops.dispatch import Call, Operator, Path


@dataclass
class MapCall(Call):
    """The arguments on which the choice of the path depends.

    The size of the map is not among them, so that one compiled graph computes every size. ``alone``
    is True if no other operator needs q, k and v.
    """

    x: Tensor
    outputs: int
    stride: int
    alone: bool

    @property
    def measured(self) -> bool:
        """Whether the preferences were measured for the call: on a CPU, without export."""
        return self.device == "cpu" and not self.exporting


def _is_narrow(call: MapCall) -> bool:
    return call.measured and call.x.shape[1] <= tuned.DENSE_CHANS * call.stride**2


def _copies_more(call: MapCall) -> bool:
    """Whether q, k and v cost more than the K^2 maps per channel of the fully connected layer."""
    return call.measured and (call.alone or call.outputs > tuned.PROJECTED_OUTPUTS)


def _convolve_dense(x: Tensor, *weights: Any, head_dim: int, stride: int, dilation: int) -> Tensor:
    kernels, border = (w.to(x.dtype) for w in connected(*weights, head_dim=head_dim).dense())
    ones = x.new_ones(1, 1, x.shape[2], x.shape[3])
    return convolve(x, kernels, stride, dilation) + convolve(ones, border, stride, dilation)


def _convolve_connected(
    x: Tensor, *weights: Any, head_dim: int, stride: int, dilation: int
) -> Tensor:
    folded = connected(*weights, head_dim=head_dim)
    weight = folded.weight.flatten(0, 1)[:, :, None, None]
    maps = F.conv2d(x, weight.to(x.dtype), folded.bias.flatten().to(x.dtype))
    return convolve(maps, folded.kernels.to(x.dtype), stride, dilation, groups=head_dim)


def _projected(backend: str) -> Callable[..., Tensor]:
    """Return a path that computes q, k and v, and then a path of `acmix_convolution`."""

    def run(
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        fc_weight: Tensor,
        fc_bias: Tensor | None,
        dep_weight: Tensor,
        **sizes: int,
    ) -> Tensor:
        q, k, v = (F.conv2d(x, w, b) for w, b in zip(weights, biases, strict=True))
        return acmix_convolution(
            q, k, v, fc_weight, dep_weight, fc_bias=fc_bias, backend=backend, **sizes
        )

    return run


# Projections and convolution, forward and backward, float32, batch 8, on one core.
CONVOLUTION_PATH: Operator[MapCall] = Operator(
    "convolution_path",
    Path("reference", _projected("reference"), "the formula"),
    Path(
        "dense",
        _convolve_dense,
        "one core, with gradients: (64, 56x56) 53 ms, projected 95; (128, 56x56), stride 2: 90, "
        "projected 182; (128, 28x28) 43, projected 52",
        prefers=_is_narrow,
    ),
    Path(
        "connected",
        _convolve_connected,
        "one core, with gradients: (192, 28x28), N = 6: 58 ms, projected 66, dense 84; "
        "(384, 14x14), N = 12: 29, projected 39, dense 75",
        prefers=_copies_more,
    ),
    Path(
        "projected",
        _projected("auto"),
        "one core, with gradients: (256, 14x14), N = 4: 26 ms, connected 27, dense 41; on other "
        "devices the paths were not measured, and an exported layer needs its own operators",
    ),
    Path("folded", _projected("folded"), "it is a path of `acmix_convolution`"),
    Path("grouped", _projected("grouped"), "it is a path of `acmix_convolution`"),
)
_PATHS = {path.name: path for path in CONVOLUTION_PATH.paths}


def convolution_path(
    x: Tensor,
    *,
    head_dim: int,
    out_chans: int,
    stride: int = 1,
    alone: bool = False,
    backend: str = "auto",
) -> str:
    """Return the path of the convolution: "dense" or "connected" from x, "projected" from q, k, v.

    Args:
        x: the input map of the projections (B, C_in, H, W).
        head_dim: d.
        out_chans: d N.
        stride: s.
        alone: whether no other operator needs q, k and v.
        backend: "auto", or a path of ``acmix_convolution``, which takes q, k and v.

    Raises:
        ValueError: an unknown backend.
    """
    call = MapCall(x, out_chans // head_dim, stride, alone)
    path = CONVOLUTION_PATH.choose(call, backend).name
    return path if path in ("dense", "connected") else "projected"


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
    """Compute the projections to q, k and v, then ``acmix_convolution``, in the folded form.

    Args:
        x: the map (B, C_in, H, W).
        weights: weights of the projections, (C_q, C_in, 1, 1), (C_k, C_in, 1, 1) and so on.
        biases: biases of the projections, (C_q,) and so on, or None.
        fc_weight: (K^2, J) or (K^2, J, 1, 1).
        dep_weight: kernels of the group convolution (d N, K^2, K, K).
        head_dim: d.
        fc_bias: (K^2,) or None.
        stride: s.
        dilation: r.
        path: "dense", "connected", "projected", "folded", "grouped" or "reference".

    Returns:
        A map (B, d N, ceil(H / s), ceil(W / s)), channels in the order (d, N).

    Raises:
        TypeError: a map that is not floating point, sizes that are not integers.
        ValueError: shapes, sizes or a path that do not fit.

    ACmix (arXiv 2111.14556), the convolution path. The paper does not fold the projections.
    """
    check_choice("path", path, _PATHS)
    check_positive("stride", stride)
    check_positive("dilation", dilation)
    check_projections(x, weights, biases)
    groups = check_widths([w.shape[0] for w in weights], head_dim)
    check_layer(fc_weight, fc_bias, groups, head_dim)
    check_kernels(dep_weight, fc_weight.shape[0], head_dim)
    sizes = {"head_dim": head_dim, "stride": stride, "dilation": dilation}
    return _PATHS[path].run(x, weights, biases, fc_weight, fc_bias, dep_weight, **sizes)
