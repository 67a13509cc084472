"""The base class of detectors: the checks of images and targets, and the form of the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from convattn.checks import check_map, check_positive, check_rate
from convattn.models.dense import DenseModel, feature_extractor
from convattn.models.feature_pyramid import PyramidBackbone
from convattn.tasks.detection.models.targets import Objects, prepare_targets


class Detector(DenseModel):
    """A backbone with a feature pyramid, and heads that find objects.

    A method defines ``losses`` and ``detect``.

    Args:
        model: the name of the backbone.
        num_classes: number of classes, without the background.
        in_chans: channels of the image.
        channels: channels of the feature pyramid and of the convolutions of the heads.
        norm_maps: whether each map of the backbone gets a LayerNorm, as in Swin Transformer's
            detectors.
        score: objects with a lower score are left out.
        nms: of two objects of a class whose IoU is higher, the one with the lower score is left
            out.
        detections: the most objects of an image.
        backbone_args: arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        ValueError: a number is out of range, or the backbone has no maps of increasing strides.
    """

    backbone: PyramidBackbone
    levels: ClassVar[int] = 4  # maps of the backbone, counted from the last one
    has_masks: ClassVar[bool] = False  # whether targets need masks, and results have masks

    def __init__(
        self,
        model: str,
        num_classes: int,
        *,
        in_chans: int = 3,
        channels: int = 256,
        norm_maps: bool = False,
        score: float = 0.05,
        nms: float = 0.5,
        detections: int = 100,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        check_positive("num_classes", num_classes)
        check_positive("channels", channels)
        check_positive("detections", detections)
        check_rate("score", score)
        if not 0 < nms <= 1:
            raise ValueError(f"nms must be above 0 and at most 1, got {nms}")
        arguments = dict(in_chans=in_chans, **(backbone_args or {}))
        body: Any = feature_extractor(model, levels=self.levels, **arguments)
        extra = self.extra_levels(body.feature_info.channels()[-1], channels)
        backbone = PyramidBackbone(body, channels, extra_blocks=extra, norm_maps=norm_maps)
        super().__init__(backbone, model, arguments)
        self.num_classes = num_classes
        self.score = score
        self.nms = nms
        self.detections = detections

    @staticmethod
    def extra_levels(last_channels: int, channels: int) -> ExtraFPNBlock | None:
        """Return the module that adds levels to the pyramid; None for one pooled level."""
        return None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone with its pyramid: the work of the heads depends on the objects."""
        self.backbone.compile(*args, **kwargs)

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Objects]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch by name."""
        raise NotImplementedError

    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Objects]:
        """Return the objects found in each image."""
        raise NotImplementedError

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Any:
        """Return the losses in training mode, and the objects found in evaluation mode.

        Args:
            images: (B, in_chans, H, W), padded on the right and at the bottom to one size.
            targets: for each image a dictionary of ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of
                the input; ``labels`` (N,) from 0; ``crowd`` (N,), if there are any: objects that
                are neither right nor wrong; ``masks`` (N, h, w), if the method has masks. Used in
                training mode only.
            sizes: (height, width) of each image without its padding; None for all of the input.

        Returns:
            In training mode the losses by name. In evaluation mode for each image a dictionary of
            ``boxes`` (N, 4), clipped to the image; ``scores`` (N,), the highest first; ``labels``
            (N,); and ``masks`` (N, 1, 28, 28), if the method has masks: probabilities on a grid
            over the box. An image for which the model computes NaN has one object with the score
            NaN.

        Raises:
            ValueError: training mode without targets, targets or sizes that do not fit the images,
                a box without area, or a label out of range.
        """
        check_map(images, "images")
        batch = ImageList(images, _checked_sizes(images, sizes))
        if not self.training:
            features = self.backbone(images)
            return self._marked(self.detect(batch, features), features, batch.image_sizes)
        if targets is None:
            raise ValueError(
                f"{type(self).__name__} in training mode needs targets; call .eval() to detect "
                "objects"
            )
        objects = prepare_targets(targets, images, self.num_classes, masks=self.has_masks)
        return self.losses(batch, self.backbone(images), objects)

    def _marked(
        self, found: list[Objects], features: Mapping[str, Tensor], sizes: list[tuple[int, int]]
    ) -> list[Objects]:
        """Return the objects of each image, or one with the score NaN if a number is not finite.

        NaN is never above the limit ``score``: without this mark, such an image would look empty.
        """
        doubtful = [number for number, objects in enumerate(found) if _is_doubtful(objects)]
        if not doubtful:
            return found
        is_broken = not _are_finite(self.parameters())
        for number in doubtful:
            if is_broken or not _are_finite(x[number] for x in features.values()):
                found[number] = self._not_a_number(sizes[number], features)
        return found

    def _not_a_number(self, size: tuple[int, int], features: Mapping[str, Tensor]) -> Objects:
        like = next(iter(features.values()))
        height, width = size
        objects = {
            "boxes": like.new_tensor([[0.0, 0.0, width, height]]),
            "scores": like.new_full((1,), math.nan),
            "labels": torch.zeros(1, dtype=torch.int64, device=like.device),
        }
        masks = {"masks": like.new_full((1, 1, 28, 28), math.nan)} if self.has_masks else {}
        return {**objects, **masks}


def _is_doubtful(objects: Objects) -> bool:
    """Return whether there are no objects, or a number is NaN or infinite."""
    return not len(objects["scores"]) or not _are_finite(objects.values())


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no number is NaN or infinite, with one transfer from the device."""
    return bool(torch.stack([x.isfinite().all() for x in tensors]).all())


def _checked_sizes(
    images: Tensor, sizes: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    count, (height, width) = len(images), images.shape[-2:]
    if sizes is None:
        return [(height, width)] * count
    checked = [(int(h), int(w)) for h, w in sizes]
    if len(checked) != count:
        raise ValueError(f"there must be a size for each image, got {len(checked)} for {count}")
    for h, w in checked:
        if not (1 <= h <= height and 1 <= w <= width):
            raise ValueError(
                f"sizes must be (height, width) within the input of {height} x {width} pixels, "
                f"got {(h, w)}"
            )
    return checked
