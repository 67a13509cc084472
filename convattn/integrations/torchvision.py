"""Backbones with a feature pyramid for torchvision's RetinaNet, Faster R-CNN and Mask R-CNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from convattn.checks import check_positive
from convattn.models import create_model


class PyramidBackbone(nn.Module):
    """A backbone that gives maps, and the feature pyramid on top of them.

    ``{"0": P_0, "1": P_1, ...} = FPN(body(x))``, the form of torchvision's ``BackboneWithFPN``.

    Args:
        body: Maps of an image, as timm's ``features_only=True`` gives them.
        out_channels: Channels of every map of the pyramid.
        extra_blocks: Further levels from the last ones; None for a pooled one, "pool".
        norm_layer: Norm after each convolution of the pyramid; None for none.

    Shape:
        (B, in_chans, H, W) to a dictionary of (B, out_channels, H_i, W_i), finest first.
    """

    def __init__(
        self,
        body: nn.Module,
        out_channels: int = 256,
        *,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_positive("out_channels", out_channels)
        info: Any = body.feature_info
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            info.channels(),
            out_channels,
            extra_blocks=LastLevelMaxPool() if extra_blocks is None else extra_blocks,
            norm_layer=norm_layer,
        )
        self.out_channels = out_channels
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the pyramid of images (B, in_chans, H, W)."""
        maps: dict[str, Tensor] = {}
        for level, value in enumerate(self.body(x)):
            maps[str(level)] = value.permute(0, 3, 1, 2) if self.channels_last else value
        return self.fpn(maps)


def backbone_with_fpn(
    name: str,
    *,
    out_indices: Sequence[int] | None = None,
    out_channels: int = 256,
    trainable_layers: int | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
    **arguments: Any,
) -> PyramidBackbone:
    """Return a backbone with a feature pyramid, of any model of ours or of timm.

    Args:
        name: The model.
        out_indices: Which of its maps the pyramid takes, in ascending order; None for the last
            four, each coarser than the one before: strides 4, 8, 16 and 32 in all of ours but the
            plain vision transformers, whose maps have one size.
        out_channels: Channels of every map of the pyramid.
        trainable_layers: How many of these maps, counted from the last, have layers of their own
            that train. Everything that an earlier map depends on is frozen, its batch norms with
            their statistics. None, or the number of maps, for everything; 0 for nothing.
        extra_blocks: Further levels, such as torchvision's ``LastLevelP6P7``; None for a pooled
            one, "pool".
        norm_layer: Norm after each convolution of the pyramid; None for none.
        **arguments: For ``timm.create_model``: ``pretrained``, ``in_chans``, ...

    Raises:
        ValueError: For an unknown name, sizes that do not fit, or, without ``out_indices``, maps
            that do not become coarser.
        TypeError: For an argument that the model does not have.

    The detectors need as many anchor sizes as there are maps, "pool" included.
    """
    indices = (-4, -3, -2, -1) if out_indices is None else tuple(out_indices)
    if trainable_layers not in (None, *range(len(indices) + 1)):
        raise ValueError(
            f"trainable_layers must be from 0 to {len(indices)}, the number of maps, got "
            f"{trainable_layers!r}"
        )
    body: Any = create_model(name, features_only=True, out_indices=indices, **arguments)
    strides = body.feature_info.reduction()
    if out_indices is None and strides != sorted(set(strides)):
        raise ValueError(
            f"the last four maps of {name!r} have strides {strides}, and a pyramid has coarser and "
            "coarser ones: choose another model, or name the maps, such as out_indices=(-1,)"
        )
    if trainable_layers is not None and trainable_layers < len(indices):
        _freeze(body, len(indices) - 1 - trainable_layers, arguments.get("in_chans"))
    return PyramidBackbone(body, out_channels, extra_blocks=extra_blocks, norm_layer=norm_layer)


def _freeze(body: Any, level: int, in_chans: int | None) -> None:
    """Freeze what the map of ``level`` depends on, which the gradient knows for any model."""
    parameters = list(body.parameters())
    channels, *size = body.pretrained_cfg["input_size"]  # some models of timm take no other size
    image = torch.zeros(
        1, in_chans or channels, *size, device=parameters[0].device, dtype=parameters[0].dtype
    )
    training = body.training
    body.eval()
    with torch.enable_grad():
        found = torch.autograd.grad(body(image)[level].sum(), parameters, allow_unused=True)
    body.train(training)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.requires_grad_(gradient is None)
    for name, norm in list(body.named_modules()):
        if isinstance(norm, nn.BatchNorm2d) and norm.affine and not norm.weight.requires_grad:
            body.set_submodule(name, freeze_batch_norm_2d(norm))
