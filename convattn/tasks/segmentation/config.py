"""The settings of the training of a segmenter that not every task has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from convattn.training.config import (
    Count,
    NotNegative,
    PositiveShare,
    Range,
    RunConfig,
    Share,
    ShareBelowOne,
    path_of,
    setting,
)

_MULTIPLE = 32  # a window is a multiple of it
Multiple = Annotated[int, Field(ge=_MULTIPLE, multiple_of=_MULTIPLE)]


class SegmentationConfig(RunConfig):
    """The settings of the training of a segmenter."""

    task: Literal["segmentation"] = setting("segmentation", "what the model is trained for")
    method: Literal["semantic_fpn", "upernet"] = setting("semantic_fpn", "the segmenter")
    model: str = setting("glnet_nano", "backbone, a name that `convattn models` or timm lists")
    data: str = setting(..., "ade20k:DIR, masks:DIR or voc:DIR")
    classes: str | tuple[str, ...] | None = setting(
        None,
        "masks: the file with the names of the classes, one in each line, or the names; default: "
        "classes.txt in the folder",
        example=["sky", "road"],
    )
    ignored: Annotated[int, Field(ge=0, le=255)] | None = setting(
        None, "masks: the value of pixels without a class; default: 255"
    )

    # Heads
    channels: Count | None = setting(
        None, "channels of the pyramid; default: 256 for semantic_fpn, 512 for upernet"
    )
    head_channels: Count | None = setting(
        None, "semantic_fpn: channels of the upsampled levels; default: half of channels"
    )
    pool_scales: tuple[Count, ...] = setting(
        (1, 2, 3, 6), "upernet: rows, and columns, of the grids of the pyramid pooling"
    )
    dropout: ShareBelowOne = setting(0.1, "rate of dropout before the classifiers")
    auxiliary: NotNegative | None = setting(
        None,
        "weight of the loss of a head on the last map but one, 0 for no such head; default: 0.4 "
        "for upernet, 0 for semantic_fpn",
    )
    norm_maps: bool | None = setting(
        None,
        "a LayerNorm on each map of the backbone; default: upernet on backbones with LayerNorms",
    )
    ignored_classes: tuple[str, ...] = setting(
        (),
        "names of classes that neither the loss nor the metrics count, and that are not predicted",
        example=["void"],
    )

    # Size of the images
    crop: Count | None = setting(
        None, "training: height and width of a crop; default: img_size, or 512"
    )
    short_side: Count | None = setting(
        None, "shorter side of a resized image in evaluation; default: img_size, or 512"
    )
    long_side: Count | None = setting(
        None, "largest length of the longer side in evaluation; default: four times short_side"
    )

    # Inference
    inference: Literal["whole", "slide"] = setting(
        "whole", "evaluation: the whole image at once, or the mean of overlapping windows"
    )
    window: Multiple | None = setting(
        None, "slide: height and width of a window; default: crop, as a multiple of 32"
    )
    window_stride: Count | None = setting(
        None, "slide: distance of two windows; default: two thirds of the window"
    )
    flip: bool = setting(False, "evaluation: average with the result of the mirrored image")

    # Augmentation
    scale: Range = setting(
        (0.5, 2.0), "random size of a training image, relative to that in evaluation"
    )
    hflip: Share | None = setting(
        None, "probability of a horizontal flip; default: 0.5 if the data allows it"
    )
    cat_max_ratio: PositiveShare = setting(
        0.75, "another crop is tried if one class has a larger share of the crop"
    )
    photometric: bool = setting(True, "distort brightness, contrast, saturation and hue")

    @field_validator("classes")
    @classmethod
    def _absolute_file(
        cls, classes: str | tuple[str, ...] | None, info: ValidationInfo
    ) -> str | tuple[str, ...] | None:
        """Make a path absolute, for a resumed run elsewhere, unless it starts from the data."""
        folder = path_of(info.data.get("data", ""))
        if not isinstance(classes, str) or (folder and (folder / classes).is_file()):
            return classes
        return str(Path(classes).expanduser().absolute())

    @property
    def targets(self) -> str:
        """A class for each pixel."""
        return "segments"

    @property
    def crop_side(self) -> int:
        """Height and width of a training crop."""
        return self.crop or self.img_size or 512

    @property
    def sides(self) -> tuple[int, int]:
        """Length of the shorter side in evaluation, and the largest length of the longer side."""
        short = self.short_side or self.img_size or 512
        return short, self.long_side or 4 * short

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        short, long = self.sides
        if long < short:
            raise ValueError(
                f"long_side={long} is less than short_side={short}; set long_side={4 * short}"
            )
        side = self.window_side
        if self.window_stride is not None and self.window_stride > side:
            raise ValueError(
                f"window_stride={self.window_stride} is greater than window={side}, so that pixels "
                f"would be left out; set window_stride={side} or less"
            )
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is (least, most), got {list(self.scale)}")
        return self

    @property
    def window_side(self) -> int:
        """Height and width of a window of the sliding inference."""
        return self.window or max(1, round(self.crop_side / _MULTIPLE)) * _MULTIPLE
