"""Backbones that return several feature maps, and the feature pyramid of detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from convattn.checks import check_positive
from convattn.models._registry import create_model

LAST_FOUR = (-4, -3, -2, -1)  # the maps of strides 4, 8, 16 and 32 of most models


class MapBackbone(nn.Module):
    """A feature extractor of timm whose maps are (B, C, H, W), whatever its own layout.

    Args:
        body: a feature extractor that timm builds with ``features_only=True``.

    Attributes:
        channels: channels of each map.
        strides: stride of each map.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        info: Any = body.feature_info
        self.body: Any = body
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")

    def maps(self, x: Tensor) -> list[Tensor]:
        """Map images (B, in_chans, H, W) to the maps (B, C_i, H_i, W_i), the largest first."""
        maps = self.body(x)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)

    def forward(self, x: Tensor) -> Any:
        """Return `maps`."""
        return self.maps(x)


class PyramidBackbone(MapBackbone):
    """A backbone that returns feature maps, followed by a feature pyramid.

    ``{"0": P_0, "1": P_1, ...} = FPN(norm(body(x)))``, the form of torchvision's
    ``BackboneWithFPN``.

    Args:
        body: a feature extractor that timm builds with ``features_only=True``.
        out_channels: channels of every level of the pyramid.
        extra_blocks: a module that adds levels; None adds one pooled level, "pool".
        norm_layer: the norm after each convolution of the pyramid; None for no norm.
        norm_maps: whether each map of the backbone gets a LayerNorm.

    Shape:
        (B, in_chans, H, W) to a dictionary of (B, out_channels, H_i, W_i), the largest map first.
    """

    def __init__(
        self,
        body: nn.Module,
        out_channels: int = 256,
        *,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        norm_maps: bool = False,
    ) -> None:
        super().__init__(body)
        check_positive("out_channels", out_channels)
        self.norms = nn.ModuleList(
            LayerNorm2d(width) if norm_maps else nn.Identity() for width in self.channels
        )
        self.fpn = FeaturePyramidNetwork(
            self.channels,
            out_channels,
            extra_blocks=LastLevelMaxPool() if extra_blocks is None else extra_blocks,
            norm_layer=norm_layer,
        )
        self.out_channels = out_channels

    def maps(self, x: Tensor) -> list[Tensor]:
        """Map images (B, in_chans, H, W) to the maps (B, C_i, H_i, W_i), each after its norm."""
        return [norm(m) for norm, m in zip(self.norms, super().maps(x), strict=True)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (B, in_chans, H, W) to the levels of the pyramid."""
        return self.pyramid(self.maps(x))

    def pyramid(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the levels of the pyramid over the backbone's maps."""
        return self.fpn({str(level): value for level, value in enumerate(maps)})


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
    """Build a backbone with a feature pyramid from a model of this package or of timm.

    A detector needs one set of anchor sizes per level of the pyramid, "pool" included.

    Args:
        name: the name of the model, as in `create_model`.
        out_indices: the feature maps that the pyramid uses, in ascending order; None for the last
            four, whose strides must increase. This package's models have strides 4, 8, 16 and 32,
            except the plain vision transformers (DeiT), whose maps have equal sizes.
        out_channels: channels of every level of the pyramid.
        trainable_layers: the number of feature maps, counted from the last one, whose layers are
            trained; all layers that an earlier map depends on are frozen, batch norm statistics
            included. None trains all layers, 0 none.
        extra_blocks: a module that adds levels, such as torchvision's ``LastLevelP6P7``; None adds
            one pooled level, "pool".
        norm_layer: the norm after each convolution of the pyramid; None for no norm.
        **arguments: arguments of ``timm.create_model``: ``pretrained``, ``in_chans``, ...

    Raises:
        ValueError: the name is unknown, a number is out of range, or ``out_indices`` is None and
            the strides of the last four maps do not increase.
        TypeError: the model does not have such an argument.
    """
    indices = LAST_FOUR if out_indices is None else tuple(out_indices)
    if trainable_layers not in (None, *range(len(indices) + 1)):
        raise ValueError(
            f"trainable_layers must be from 0 to {len(indices)}, the number of maps, got "
            f"{trainable_layers!r}"
        )
    body: Any = create_model(name, features_only=True, out_indices=indices, **arguments)
    strides = body.feature_info.reduction()
    if out_indices is None and strides != sorted(set(strides)):
        raise ValueError(
            f"the last four maps of {name!r} have strides {strides}, and those of a pyramid must "
            "increase: choose another model, or name the maps, such as out_indices=(-1,)"
        )
    if trainable_layers is not None and trainable_layers < len(indices):
        _freeze(body, len(indices) - 1 - trainable_layers, arguments.get("in_chans"))
    return PyramidBackbone(body, out_channels, extra_blocks=extra_blocks, norm_layer=norm_layer)


def _freeze(body: Any, level: int, in_chans: int | None) -> None:
    """Freeze the parameters that the map of ``level`` depends on, found by a backward pass."""
    parameters = list(body.parameters())
    channels, *size = body.pretrained_cfg["input_size"]  # some models of timm need this size
    image = torch.zeros(
        1, in_chans or channels, *size, device=parameters[0].device, dtype=parameters[0].dtype
    )
    training = body.training
    body.eval()
    with torch.enable_grad():
        gradients = torch.autograd.grad(body(image)[level].sum(), parameters, allow_unused=True)
    body.train(training)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is None)
    for name, norm in list(body.named_modules()):
        if isinstance(norm, nn.BatchNorm2d) and norm.affine and not norm.weight.requires_grad:
            body.set_submodule(name, freeze_batch_norm_2d(norm))
