"""A segmenter: a backbone, a head on all of its maps, and an auxiliary head on one map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from convattn.data.joint.padding import IGNORED
from convattn.models.dense import DenseModel
from convattn.models.feature_pyramid import MapBackbone
from convattn.tasks.segmentation.models.inference import Inference
from convattn.tasks.segmentation.models.parts import resize_like

_NEVER = -1e4  # the logit of a class that is not predicted; infinities have no mean


class Segmenter(DenseModel):
    """``logits = up(head(norm(backbone(images))))``, a class per pixel.

    Args:
        backbone: returns the maps.
        head: computes logits at the resolution of the first map from all maps.
        norm_maps: whether each map of the backbone gets a LayerNorm of its own.
        auxiliary: computes logits from the last map but one, for an auxiliary loss; None for none.
        auxiliary_weight: factor of the auxiliary loss.
        ignored: numbers of classes whose pixels no loss counts, and that are not predicted.
        inference: how the model is used on images that are not for training.
        model: the name of the model that the backbone was built from.
        backbone_args: the arguments that the backbone was built with.

    Shape:
        (B, in_chans, H, W) to (B, num_classes, H, W).
    """

    def __init__(
        self,
        backbone: MapBackbone,
        head: nn.Module,
        *,
        norm_maps: bool = False,
        auxiliary: nn.Module | None = None,
        auxiliary_weight: float = 0.4,
        ignored: Sequence[int] = (),
        inference: Inference | None = None,
        model: str = "",
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, model, backbone_args)
        self.norms = nn.ModuleList(
            LayerNorm2d(width) if norm_maps else nn.Identity() for width in backbone.channels
        )
        self.head = head
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        self.ignored = tuple(ignored)
        self.inference = inference or Inference()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the backbone, each after its norm."""
        maps = self.backbone.maps(images)
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Any:
        """Return the logits in evaluation mode, the losses in training mode.

        Args:
            images: (B, in_chans, H, W).
            targets: class numbers (B, H, W), 255 for pixels that do not count; only for training.

        Returns:
            In evaluation mode the logits (B, num_classes, H, W). In training mode "loss", the mean
            cross-entropy of the pixels that count, or 0 if there are none; and "aux", that of the
            auxiliary head times its weight, if the model has one.

        Raises:
            ValueError: no targets in training mode, or targets of another size than the images.
        """
        if not self.training:
            logits = self.head(self.maps(images))
            if self.ignored:
                number = torch.tensor(self.ignored, device=logits.device)
                logits = logits.index_fill(1, number, _NEVER)
            return resize_like(logits, images)
        if targets is None:
            raise ValueError("a segmenter in training mode needs targets; call eval() for logits")
        _check_targets(targets, images)
        for ignored in self.ignored:
            targets = targets.masked_fill(targets == ignored, IGNORED)
        maps = self.maps(images)
        losses = {"loss": segmentation_loss(self.head(maps), targets)}
        if self.auxiliary is not None:
            losses["aux"] = self.auxiliary_weight * segmentation_loss(
                self.auxiliary(maps[-2]), targets
            )
        return losses


def segmentation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels whose target is not 255; 0 if there are none.

    Args:
        logits: (B, K, h, w), which are resized to the size of the targets.
        targets: class numbers (B, H, W).
    """
    pixels = resize_like(logits.float(), targets)
    total = F.cross_entropy(pixels, targets.long(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _check_targets(targets: Tensor, images: Tensor) -> None:
    expected = (len(images), *images.shape[2:])
    if targets.shape != expected:
        raise ValueError(
            f"the targets of images {tuple(images.shape)} must have the shape {expected}, got "
            f"{tuple(targets.shape)}"
        )
