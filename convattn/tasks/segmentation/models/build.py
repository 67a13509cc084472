"""Build a segmenter by the names of its method and of its backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import LayerNorm, LayerNorm2d
from torch import nn

from convattn.checks import check_choice, check_positive, check_rate
from convattn.data.joint.padding import IGNORED
from convattn.models.dense import feature_extractor
from convattn.models.feature_pyramid import MapBackbone
from convattn.tasks.segmentation.models.fcn import FCNHead
from convattn.tasks.segmentation.models.inference import Inference
from convattn.tasks.segmentation.models.segmenter import Segmenter
from convattn.tasks.segmentation.models.semantic_fpn import SemanticFPNHead
from convattn.tasks.segmentation.models.upernet import UperNetHead

METHODS = ("semantic_fpn", "upernet")


def build_segmenter(
    method: str,
    backbone: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    channels: int | None = None,
    head_channels: int | None = None,
    pool_scales: Sequence[int] = (1, 2, 3, 6),
    dropout: float = 0.1,
    auxiliary: float | None = None,
    norm_maps: bool | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    ignored: Sequence[int] = (),
    inference: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Build a segmenter with random weights.

    The defaults are the sizes of the papers: Semantic FPN as in PVT, UperNet as in Swin.

    Args:
        method: "semantic_fpn" or "upernet".
        backbone: name of a model of this package or of timm whose last four strides increase.
        num_classes: number of classes, at most 255.
        in_chans: channels of the images.
        channels: channels of the pyramid; None for 256 in Semantic FPN, 512 in UperNet.
        head_channels: Semantic FPN: channels of the upsampled levels; None for half of
            ``channels``.
        pool_scales: UperNet: grids of the pyramid pooling.
        dropout: rate of dropout before the classifiers.
        auxiliary: weight of the loss of an auxiliary head on the last map but one, 0 for no such
            head; None for 0.4 in UperNet, 0 in Semantic FPN. The head has half of ``channels`` in
            UperNet and ``channels`` in Semantic FPN.
        norm_maps: whether each map of the backbone gets a LayerNorm; None for UperNet on backbones
            that have LayerNorms, as in Swin's segmenters.
        backbone_args: further arguments of the backbone, such as ``drop_path_rate``.
        ignored: numbers of classes whose pixels no loss counts, and that are not predicted.
        inference: arguments of `Inference`.

    Raises:
        ValueError: an unknown name, a number out of range, or the strides do not increase.
        TypeError: the backbone does not have an argument of ``backbone_args``.
    """
    check_choice("method", method, METHODS)
    _check_sizes(num_classes, channels, head_channels, pool_scales)
    check_rate("dropout", dropout)
    is_upernet = method == "upernet"
    weight = (0.4 if is_upernet else 0.0) if auxiliary is None else auxiliary
    if weight < 0:
        raise ValueError(f"auxiliary must be at least 0, got {auxiliary}; 0 is no auxiliary head")
    arguments = {"in_chans": in_chans, **(backbone_args or {})}
    maps = MapBackbone(feature_extractor(backbone, **arguments))
    width = channels or (512 if is_upernet else 256)
    head: nn.Module
    if is_upernet:
        head = UperNetHead(
            maps.channels, num_classes, channels=width, pool_scales=pool_scales, dropout=dropout
        )
    else:
        head = SemanticFPNHead(
            maps.channels,
            maps.strides,
            num_classes,
            channels=width,
            head_channels=head_channels,
            dropout=dropout,
        )
    inner = max(1, width // 2) if is_upernet else width
    return Segmenter(
        maps,
        head,
        norm_maps=is_upernet and _has_layer_norms(maps) if norm_maps is None else norm_maps,
        auxiliary=FCNHead(maps.channels[-2], num_classes, channels=inner, dropout=dropout)
        if weight
        else None,
        auxiliary_weight=weight,
        ignored=ignored,
        inference=Inference(**(inference or {})),
        model=backbone,
        backbone_args=arguments,
    )


def _check_sizes(
    num_classes: int,
    channels: int | None,
    head_channels: int | None,
    pool_scales: Sequence[int],
) -> None:
    check_positive("num_classes", num_classes)
    if num_classes > IGNORED:
        raise ValueError(
            f"a segmenter has at most {IGNORED} classes, since a mask has 8 bits and the value "
            f"{IGNORED} is for ignored pixels, got num_classes={num_classes}"
        )
    for name, value in (("channels", channels), ("head_channels", head_channels)):
        if value is not None:
            check_positive(name, value)
    for scale in pool_scales:
        check_positive("a pool scale", scale)


def _has_layer_norms(module: nn.Module) -> bool:
    kinds = (nn.LayerNorm, LayerNorm, LayerNorm2d)
    return any(isinstance(part, kinds) for part in module.modules())
