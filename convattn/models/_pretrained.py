"""timm's description of each model: input, names of layers, and no weights to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import resolve_pretrained_cfg

_SOURCES = ("url", "file", "state_dict", "hf_hub_id")


def pretrained_cfg(
    *,
    first_conv: str,
    classifier: str | tuple[str, ...],
    image_size: int = 224,
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
) -> dict[str, Any]:
    """Return timm's description of a model whose final map has stride 32.

    Args:
        first_conv: name of the convolution whose input is the image.
        classifier: name or names of the linear layers that compute the logits.
        image_size: side of the square image that the model is made for.
        crop_pct: share of the resized image that evaluation keeps in the centre crop.
        interpolation: interpolation method for resizing images.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, image_size, image_size),
        "pool_size": (image_size // 32, image_size // 32),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    }


def check_weights_exist(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> None:
    """Raise if weights are required and neither the registry nor the caller names a source."""
    if not pretrained:
        return
    cfg = resolve_pretrained_cfg(
        name,
        pretrained_cfg=arguments.get("pretrained_cfg"),
        pretrained_cfg_overlay=arguments.get("pretrained_cfg_overlay"),
    )
    if any(getattr(cfg, source) for source in _SOURCES):
        return
    raise RuntimeError(
        f"no weights of {name} can be downloaded, and pretrained=True never means random weights. "
        f"Load a file: model = convattn.create_model({name!r}) and then "
        "convattn.load_official(model, PATH) for the authors' checkpoint, or "
        f"convattn.create_model({name!r}, checkpoint_path=PATH) for one of this package; for "
        "either as a backbone or with other classes, pretrained=True, "
        "pretrained_cfg_overlay={'file': PATH}"
    )
