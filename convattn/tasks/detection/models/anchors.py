"""Anchors at the strides of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

RATIOS = (0.5, 1.0, 2.0)  # height / width


class PyramidAnchors(AnchorGenerator):
    """torchvision's anchors, in float32, of exact sizes, and at the strides of the pyramid.

    torchvision derives the strides from the sizes of the maps, which are rounded up for images
    whose size the strides do not divide, rounds the sizes of the anchors, and gives the anchors the
    dtype of the maps: bfloat16 has only eight bits for a position.

    Args:
        strides: stride of each level.
        scale: side of the smallest square anchor of a level, in strides.
        octaves: number of sizes of a level, from ``scale`` to below ``2 * scale``.
    """

    def __init__(self, strides: Sequence[int], scale: float, octaves: int = 1) -> None:
        if not scale > 0:
            raise ValueError(f"anchor_scale must be above 0, got {scale}")
        self.strides = tuple(strides)
        sizes = [[s * scale * 2 ** (i / octaves) for i in range(octaves)] for s in strides]
        super().__init__(tuple(tuple(size) for size in sizes), tuple(RATIOS for _ in self.strides))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return anchors (len(aspect_ratios) * len(scales), 4) around zero."""
        device = device or torch.device("cpu")  # a model on the meta device has its anchors, too
        side = torch.tensor(scales, dtype=dtype, device=device)
        root = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        height, width = (root[:, None] * side).flatten(), (side / root[:, None]).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of all levels (A, 4) for each image."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(s, device=device)] * 2 for s in self.strides]
        anchors = torch.cat(self.grid_anchors([m.shape[-2:] for m in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class AnchorMatcher(Matcher):
    """torchvision's matcher of anchors, with a least IoU of the best anchors of an object.

    An anchor matches an object from an IoU of ``high``, and is background below ``low``. An object
    without such an anchor takes its best ones. torchvision gives it even anchors that it does not
    overlap: all anchors of the image, if it overlaps none.

    Args:
        high: IoU from which an anchor matches an object.
        low: IoU below which an anchor is background; it is not used from ``low`` to ``high``.
        least: IoU from which an object takes its best anchors; it must be above 0 in any case.
    """

    def __init__(self, high: float, low: float, least: float = 0.0) -> None:
        super().__init__(high, low, allow_low_quality_matches=True)
        self.least = least

    def set_low_quality_matches_(
        self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor
    ) -> None:
        """Change ``matches`` in place for the best anchors of the objects."""
        best = match_quality_matrix.amax(1)
        near = match_quality_matrix[(best > 0) & (best >= self.least)]
        super().set_low_quality_matches_(matches, all_matches, near)
