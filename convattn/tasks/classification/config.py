"""The settings of the training of a classifier that not every task has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from convattn.training.config import (
    Count,
    CountOrZero,
    NotNegative,
    PositiveShare,
    Range,
    RunConfig,
    Share,
    ShareBelowOne,
    setting,
)


class TrainConfig(RunConfig):
    """The settings of the training of a classifier."""

    model_arguments: ClassVar[Mapping[str, str]] = {
        **RunConfig.model_arguments,
        "drop": "drop_rate",
    }

    task: Literal["classification"] = setting("classification", "what the model is trained for")
    model: str = setting("glnet_nano", "model, a name that `convattn models` or timm lists")
    data: str = setting("digits", "digits, folder:PATH or timm:NAME")

    # Evaluation
    crop_pct: PositiveShare | None = setting(
        None, "evaluation: share of the resized image that the centre crop keeps"
    )
    crop_mode: Literal["center", "squash", "border"] | None = setting(
        None,
        "evaluation: keep the middle of a long image (center), or all of it, stretched to a "
        "square (squash) or with borders (border); default: that of the model",
    )

    # Augmentation
    repeats: Count = setting(1, "repeated augmentation: copies of an image in an epoch")
    scale: Range = setting((0.08, 1.0), "share of the area that a random crop keeps")
    ratio: Range = setting((0.75, 1.3333), "width over height of the random crop")
    hflip: Share | None = setting(
        None, "probability of a horizontal flip; default: 0.5 if the data allows it"
    )
    vflip: Share = setting(0.0, "probability of a vertical flip")
    color_jitter: NotNegative = setting(
        0.4, "strength of colour jitter, which auto_augment replaces"
    )
    auto_augment: str | None = setting(None, "policy of timm, such as rand-m9-mstd0.5-inc1")
    erasing: Share = setting(0.0, "probability of erasing a rectangle")
    degrees: NotNegative = setting(0.0, "largest random rotation, in degrees")
    translate: Share = setting(0.0, "largest random shift, as a share of the image")
    zoom: Range = setting((1.0, 1.0), "random magnification")
    shear: NotNegative = setting(0.0, "largest random shear, in degrees")
    mixup: NotNegative = setting(0.0, "alpha of mixup; 0: no mixup")
    cutmix: NotNegative = setting(0.0, "alpha of CutMix; 0: no CutMix")
    mixup_prob: Share = setting(1.0, "probability of mixup or CutMix in a batch")
    mixup_switch_prob: Share = setting(0.5, "probability of CutMix where both are used")
    mixup_off_epoch: CountOrZero = setting(0, "epoch after which mixup and CutMix end; 0: never")

    # Loss and head
    loss: Literal["ce", "bce"] = setting(
        "ce", "cross-entropy (ce), or binary cross-entropy per class (bce)"
    )
    smoothing: ShareBelowOne = setting(0.1, "label smoothing")
    drop: ShareBelowOne | None = setting(
        None, "rate of dropout before the head; default: that of the model"
    )

    @classmethod
    def default_recipe(cls, values: Mapping[str, Any]) -> str | None:
        """Return the recipe "digits" for the digits."""
        return "digits" if values.get("data", "digits") == "digits" else None

    @model_validator(mode="after")
    def _check_mixup(self) -> Self:
        if (self.mixup or self.cutmix) and self.batch_size < 2:
            raise ValueError(
                f"mixup and CutMix mix two images of a batch, got batch_size={self.batch_size}; "
                "make it 2 or more, or set both to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for key in ("scale", "ratio", "zoom"):
            least, most = getattr(self, key)
            if least > most:
                raise ValueError(f"{key} is (least, most), got [{least}, {most}]")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the area, at most 1, got {self.scale[1]}")
        return self
