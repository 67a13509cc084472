"""Where ACmix reads the weights of its layers in place of calling them, and what it does else.

Weights are less work than calls, and the same while a layer is `is_bare`: not replaced,
parametrized, pruned, adapted, quantized, nor watched by a hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.acmix.choices import ShiftConv2d
from convattn.layers.attention.part import AttentionPart
from convattn.layers.bare import is_bare

if TYPE_CHECKING:
    from convattn.layers.acmix.acmix import ACmix


def has_bare_projections(layer: ACmix) -> bool:
    """Whether q, k and v are weight and bias alone: not replaced, parametrized or watched."""
    return all(is_pointwise(p) for p in (layer.q_proj, layer.k_proj, layer.v_proj))


def has_bare_layers(layer: ACmix) -> bool:
    """Whether ``fc`` and the group convolution are weights alone."""
    conv = layer.dep_conv
    fits = conv is None or (type(conv) in (nn.Conv2d, ShiftConv2d) and is_bare(conv))
    return fits and (layer.fc is None or is_pointwise(layer.fc))


def is_pointwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a 1x1 convolution, and a bare one.

    Exactly that: what derives from it, as with parametrized weights, may compute something else.
    """
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding == (0, 0)
        and is_bare(layer)
    )


def sees_one_map(attn: AttentionPart) -> bool:
    """Whether q, k and v come from one map, and the convolution takes them as they are."""
    kind = type(attn)
    return (kind.context, kind.spread) == (AttentionPart.context, AttentionPart.spread)


def attends_map(attn: AttentionPart) -> bool:
    """Whether the attention is less work from that map than from q, k and v.

    A ``forward`` that somebody wrote anew counts for more than a ``forward_map`` that it inherits.
    """
    ways = ("forward_map", "forward")
    latest = next(c for c in type(attn).__mro__ if any(way in vars(c) for way in ways))
    return latest is not AttentionPart and "forward_map" in vars(latest) and sees_one_map(attn)


def call_layers(layer: ACmix, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Convolve q, k and v by calling ``fc``, with the channels as images, and ``dep_conv``."""
    assert layer.fc is not None
    groups = [x.unflatten(1, (-1, layer.head_dim)) for x in (q, k, v)]
    stacked = torch.cat(groups, dim=1).transpose(1, 2)  # (B, d, J, H, W)
    maps = layer.fc(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2]).flatten(1, 2)
    if layer.dep_conv is not None:
        return layer.dep_conv(maps)
    padding = layer.dilation * (layer.kernel_size // 2)
    sizes = (layer.attn.stride, padding, layer.dilation)
    return F.conv2d(maps, layer.dep_weight(maps), None, *sizes, groups=layer.head_dim)
