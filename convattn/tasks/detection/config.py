"""The settings of the training of a detector that not every task has."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from convattn.training.config import (
    Count,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    RunConfig,
    Share,
    setting,
)

MASK_METHODS = ("mask_rcnn", "cascade_mask_rcnn")
# Settings that are arguments of a method's model. Those that are None keep the method's default.
MODEL_SETTINGS = (
    "channels", "norm_maps", "head_depth", "head_width", "box_head", "anchor_scale", "proposals",
    "train_proposals", "candidates", "train_candidates", "samples", "rpn_samples", "score", "nms",
    "detections",
)  # fmt: skip
_Sides = tuple[Count, ...]

with warnings.catch_warnings():
    # pydantic's models have a deprecated method of this name.
    warnings.filterwarnings("ignore", 'Field name "json"', UserWarning)

    class _CocoFiles(RunConfig):
        """Where the files of a data set in COCO's format are."""

        json: str | tuple[str, ...] | None = setting(  # type: ignore[assignment]
            None,
            "coco: the annotation file, or those of training and validation; default: the files in "
            "the folder annotations",
            example=["train.json", "val.json"],
        )
        images: str | tuple[str, ...] | None = setting(
            None,
            "coco: the folder of the images, or those of training and validation",
            example=["train2017", "val2017"],
        )


class DetectionConfig(_CocoFiles):
    """The settings of the training of a detector."""

    task: Literal["detection"] = setting("detection", "what the model is trained for")
    method: Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"] = setting(
        "faster_rcnn", "the detector; mask_rcnn and cascade_mask_rcnn find masks too"
    )
    model: str = setting("glnet_nano", "backbone, a name that `convattn models` or timm lists")
    data: str = setting(..., "coco:DIR, voc:DIR, or yolo:FILE.yaml or yolo:DIR")

    # Model
    channels: Count | None = setting(
        None, "channels of the feature pyramid and of the heads; default: 256"
    )
    norm_maps: bool | None = setting(
        None, "a LayerNorm on each map of the backbone; default: false"
    )
    head_depth: Count | None = setting(None, "3x3 convolutions of a head; default: 4")
    head_width: Count | None = setting(
        None, "not retinanet: width of the linear layers of a head of boxes; default: 1024"
    )
    box_head: Literal["conv", "linear"] | None = setting(
        None,
        "cascade_mask_rcnn: heads of convolutions with a regression per class (conv), or of two "
        "linear layers with one regression for all classes (linear); default: conv",
    )
    anchor_scale: Positive | None = setting(
        None, "side of a level's anchors in strides of the level; default: 4 for retinanet, else 8"
    )
    proposals: Count | None = setting(
        None, "not retinanet: regions of an image in evaluation; default: 1000"
    )
    train_proposals: Count | None = setting(
        None,
        "not retinanet: regions of an image in training; default: 1000, cascade_mask_rcnn 2000",
    )
    candidates: Count | None = setting(
        None, "anchors of a level before the suppression, in evaluation; default: 1000"
    )
    train_candidates: Count | None = setting(
        None,
        "not retinanet: anchors of a level before the suppression, in training; default: 2000",
    )
    samples: Count | None = setting(
        None, "not retinanet: regions of an image in the losses of the heads; default: 512"
    )
    rpn_samples: Count | None = setting(
        None, "not retinanet: anchors of an image in the losses of the proposals; default: 256"
    )

    # Results
    score: Share = setting(0.05, "evaluation: objects with a lower score are left out")
    nms: PositiveShare = setting(
        0.5,
        "evaluation: of two objects of a class whose IoU is higher, the one with the lower score "
        "is left out",
    )
    detections: Count = setting(100, "evaluation: largest number of objects per image")
    backend: Literal["pycocotools", "faster_coco_eval"] = setting(
        "pycocotools", "package that computes the average precision"
    )

    # Size of the images
    img_size: Count | None = setting(
        None,
        "height and width of the input, into which images are fitted; default: no fixed input, "
        "but short_side and long_side",
    )
    short_side: Count = setting(800, "shorter side of a resized image")
    long_side: Count = setting(1333, "largest length of the longer side of a resized image")
    short_sides: _Sides = setting(
        (), "training: lengths of the shorter side to choose from; default: short_side"
    )
    crop_sides: _Sides = setting(
        (),
        "training: half of the images are first resized to one of these shorter sides, and a "
        "random window is cut out",
    )
    crop_range: tuple[Count, Count] = setting(
        (384, 600), "with crop_sides: least and greatest height and width of the random window"
    )

    # Augmentation
    scale: Range = setting(
        (0.5, 1.5), "training with img_size: random size of the image, relative to the input"
    )
    hflip: Share | None = setting(
        None, "probability of a horizontal flip; default: 0.5 if the data allows it"
    )
    color_jitter: NotNegative = setting(0.0, "strength of colour jitter")
    photometric: bool = setting(False, "distort brightness, contrast, saturation and hue")
    min_size: NotNegative = setting(
        1.0, "training: width and height in pixels below which an object is left out"
    )

    @property
    def targets(self) -> str:
        """Boxes, with masks for the methods that find masks."""
        return "instances" if self.method in MASK_METHODS else "boxes"

    @property
    def has_masks(self) -> bool:
        """Whether the method finds masks."""
        return self.method in MASK_METHODS

    @field_validator("json", "images")
    @classmethod
    def _as_given(cls, value: Any) -> Any:
        """Expand "~" in the paths; a relative path starts from the folder of the data."""
        if value is None or isinstance(value, str):
            return None if value is None else str(Path(value).expanduser())
        if not 1 <= len(value) <= 2:
            raise ValueError(
                f"must be one path, or those of training and validation, got {len(value)} paths"
            )
        return tuple(str(Path(path).expanduser()) for path in value)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.long_side < self.short_side:
            raise ValueError(
                f"long_side={self.long_side} is less than short_side={self.short_side}; set "
                f"long_side={round(self.short_side * 5 / 3)}"
            )
        for key in ("short_sides", "crop_sides"):
            sides = getattr(self, key)
            if sides and max(sides) > self.long_side:
                raise ValueError(
                    f"{key}={list(sides)} has lengths above long_side={self.long_side}; set "
                    f"long_side={round(max(sides) * 5 / 3)}"
                )
        for key in ("scale", "crop_range"):
            least, most = getattr(self, key)
            if least > most:
                raise ValueError(f"{key} is (least, most), got [{least}, {most}]")
        return self
