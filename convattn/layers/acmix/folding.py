"""Folding of ACmix: alpha and beta into weights, the convolution path into its deployed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from convattn.layers.acmix.projections import is_pointwise
from convattn.layers.attention.part import AttentionPart
from convattn.layers.foldable import may_fold, may_fold_inside, may_reach_into
from convattn.layers.folding import fold_scale, fold_shift
from convattn.ops.fuse import widened

if TYPE_CHECKING:
    from convattn.layers.acmix.acmix import ACmix

# Outside this range, folding alpha and 1 / alpha would lose digits in half precision.
_MODERATE = (0.01, 100.0)


@torch.no_grad()
def fold_acmix(layer: ACmix) -> None:
    """Fold consecutive linear operations; see ``ACmix.reparameterize``."""
    if layer.fc is None or not may_fold_inside(layer) or not layer.convolution.may_fold():
        return
    layer.convolution.scale(torch.as_tensor(layer.factors[1]))
    _settle(layer, "beta")
    direct = layer.convolution.deployed_from_map()
    if direct is not None:
        layer.direct = direct.train(layer.training)
        layer.fc = layer.dep_conv = None
        if layer.mix == "convolution":
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(layer, name, nn.Identity())
    if isinstance(layer.alpha, nn.Parameter) and _fold_alpha(layer, layer.alpha):
        _settle(layer, "alpha")
    folded = layer.convolution.deployed_from_projected()
    if folded is not None:
        layer.folded = folded
        layer.fc = layer.dep_conv = None


@torch.no_grad()
def absorb_affine(layer: ACmix, scale: Tensor, shift: Tensor) -> bool:
    """Replace the layer's outputs y by ``scale * y + shift``; see ``ACmix.absorb_affine``."""
    attn = layer.attn
    if layer.mix == "attention":
        last = _last_layer(layer)
        if last is None or not attn.weights_sum_to_one:
            return False
        fold_scale(last, scale)
        fold_shift(last, shift)
        return True
    fold_acmix(layer)
    if layer.direct is None or not may_reach_into(layer.direct) or not may_fold(layer.direct.conv):
        return False
    if layer.mix == "convolution":
        layer.direct.absorb_affine(scale, shift)
        return True
    last = _last_layer(layer)
    if last is None or isinstance(layer.alpha, nn.Parameter):
        return False
    # The convolution does not read tokens: if tokens are supported, the attention adds the shift.
    tokens = attn.supports_tokens
    if tokens and not attn.weights_sum_to_one:
        return False
    fold_scale(last, scale)
    if tokens:
        fold_shift(last, shift)
    layer.direct.absorb_affine(scale, None if tokens else shift)
    return True


def _settle(layer: ACmix, factor: str) -> None:
    """Replace a factor that was folded by the number 1."""
    delattr(layer, factor)
    setattr(layer, factor, 1.0)


def _fold_alpha(layer: ACmix, alpha: Tensor) -> bool:
    """Fold alpha into weights; return False, without a change, if that is not possible.

    Alpha is folded into the last layer of the attention. If this layer is ``v_proj`` and ``fc``
    also reads v, 1 / alpha is folded into the columns of v in ``fc``.
    """
    last, fc = _last_layer(layer), layer.fc
    if last is None:
        return False
    if last is layer.v_proj and fc is not None:
        if not alpha.is_meta and not _MODERATE[0] < float(alpha.abs()) < _MODERATE[1]:
            return False
        of_v = fc.weight[:, -layer.attn.groups[2] :]
        of_v.copy_(widened(of_v) / alpha)
    fold_scale(last, alpha)
    return True


def _last_layer(layer: ACmix) -> nn.Conv2d | None:
    """Return the layer into which a factor of the attention can be folded, or None.

    This layer is the output projection of the attention or, without one, ``v_proj``.
    """
    attn = layer.attn
    if not may_reach_into(attn, AttentionPart, "linear_in_values"):
        return None
    proj = getattr(attn, "proj", None)
    if proj is not None and not may_fold(proj):
        return None
    last = layer.v_proj if proj is None or isinstance(proj, nn.Identity) else proj
    if last in (layer.q_proj, layer.k_proj) or not may_fold(last):
        return None
    return last if is_pointwise(last) else None
