"""Measure detectors and segmenters: evaluation and one training step of one image.

python -m benchmarks.dense
python -m benchmarks.dense --device cuda

Mask R-CNN has images of 800 x 1280 pixels and UperNet of 512 x 512, with the sizes of the papers;
the detectors of the recipe `small` have images of 320 x 320. Half precision is autocast. The batch
norms of a training step use stored statistics, since there is only one image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import convattn
from benchmarks.common import Options, main
from benchmarks.networks import SWIN
from convattn.bench.cases import Built, Case, Group
from convattn.bench.models import DTYPES
from convattn.models import count_macs, count_parameters
from convattn.tasks.detection.complexity import count_detector_macs
from convattn.tasks.detection.config import MODEL_SETTINGS
from convattn.tasks.detection.models import METHODS, build_detector, method_arguments
from convattn.tasks.segmentation.models import build_segmenter
from convattn.tasks.table import load_config

OURS = "glnet_stl"
_SMALL = "small detectors"  # they compute fewer regions than are counted
_CLASSES = {"detection": 80, "segmentation": 150}
_OBJECTS = 8  # in an image of a training step
_LIKELY = 5.0  # logit of the first class, so that as many objects are found as possible


@dataclass(frozen=True)
class Subject:
    """A detector or a segmenter, and how it is run.

    Args:
        task: "detection" or "segmentation".
        method: name of the method.
        backbone: name of the model.
        size: height and width of the image.
        train: a training step instead of an evaluation.
        device: the device that it runs on.
        dtype: "float32" or "bfloat16".
        arguments: names and values of further arguments of the model.
    """

    task: str
    method: str
    backbone: str
    size: tuple[int, int]
    train: bool
    device: str
    dtype: str
    arguments: tuple[tuple[str, Any], ...] = ()


def plan(options: Options) -> list[Group]:
    """Return for each comparison a group of evaluations and a group of training steps."""
    return [
        _group(title, subjects, options)
        for dtype in options.dtypes
        for train in (False, True)
        for title, subjects in _comparisons(options, dtype, train)
    ]


def _comparisons(
    options: Options, dtype: str, train: bool
) -> Iterator[tuple[str, dict[str, Subject]]]:
    """Yield a title, and subjects by the names that the tables have."""
    how: dict[str, Any] = {"train": train, "device": options.device, "dtype": dtype}
    if options.quick:
        networks, box, square = ("resnet10t", "glnet_nano"), (64, 96), (64, 64)
        narrow: tuple[tuple[str, Any], ...] = (("channels", 16),)
    else:
        networks, box, square, narrow = (SWIN, OURS), (800, 1280), (512, 512), ()
    yield (
        "Mask R-CNN",
        {
            name: Subject("detection", "mask_rcnn", name, box, arguments=narrow, **how)
            for name in networks
        },
    )
    yield (
        "UperNet",
        {
            name: Subject("segmentation", "upernet", name, square, arguments=narrow, **how)
            for name in networks
        },
    )
    if options.quick:
        return
    yield (
        _SMALL,
        {
            f"{method}, {name}": Subject(
                "detection", method, name, (320, 320), arguments=_small(method), **how
            )
            for name in ("glnet_nano", "acmix_resnet_nano")
            for method in METHODS
        },
    )


@cache
def _small(method: str) -> tuple[tuple[str, Any], ...]:
    """Return the arguments of a method's model in the recipe ``small``."""
    config: Any = load_config("detection", "small", {"method": method, "data": "coco:scenes"})
    values = {name: getattr(config, name) for name in MODEL_SETTINGS}
    known = method_arguments(method)
    return tuple((k, v) for k, v in values.items() if k in known and v is not None)


def _group(title: str, subjects: dict[str, Subject], options: Options) -> Group:
    first = next(iter(subjects.values()))
    mode = "training step" if first.train else "evaluation"
    height, width = first.size
    return Group(
        name=f"{title}, {height} x {width}, {mode}, {first.dtype}",
        cases=[
            Case(
                name,
                partial(_training if s.train else _evaluation, s),
                macs=None if s.train or title == _SMALL else partial(_macs, s),
                details={"method": s.method, "backbone": s.backbone},
            )
            for name, s in subjects.items()
        ],
        device=options.device,
        dtype=first.dtype,
        settings={
            "of": title,
            "mode": mode,
            "batch": 1,
            "size": list(first.size),
            "compile": False,
            "form": "trained" if first.train else "deployed",
            "layout": "channels-last",
            "weights": "random",
            **({"optimizer": "AdamW, fused"} if first.train else {}),
        },
        weight=len(subjects) * (3.0 if first.train else 1.0),
        apart=options.apart,
    )


def _build(subject: Subject) -> Any:
    """Return the model with random weights that find objects."""
    torch.manual_seed(0)
    build: Any = build_detector if subject.task == "detection" else build_segmenter
    arguments = dict(subject.arguments)
    model = build(subject.method, subject.backbone, _CLASSES[subject.task], **arguments)
    _find_objects(model)
    return model


@torch.no_grad()
def _find_objects(model: nn.Module) -> None:
    """Raise the logit of the first class, so that a network without training finds objects.

    Heads of masks compute the objects that were found: those of a new network would have no work.
    """
    for name, layer in model.named_modules():
        bias: Any = getattr(layer, "bias", None)
        if name.endswith("cls_score"):
            bias[1] += _LIKELY  # 0 is the background
        elif name.endswith("classification_head.cls_logits"):
            bias[:: _CLASSES["detection"]] += _LIKELY


@cache
def _macs(subject: Subject) -> int:
    """Return the multiply-adds of an evaluation, counted as in docs/dense.md."""
    classes, arguments = _CLASSES[subject.task], dict(subject.arguments)
    if subject.task == "detection":
        parts = count_detector_macs(
            subject.method, subject.backbone, classes, subject.size, **arguments
        )
        return sum(parts.values())
    with torch.device("meta"):
        model = build_segmenter(subject.method, subject.backbone, classes, **arguments)
    return count_macs(model, (3, *subject.size))


def _evaluation(subject: Subject) -> Built:
    model = _build(subject)
    details = {"parameters": count_parameters(model)}
    model = convattn.reparameterize(model.eval()).to(subject.device)
    model = model.to(memory_format=torch.channels_last)
    image, autocast = _image(subject), _autocast(subject)

    def call() -> Any:
        with torch.inference_mode(), autocast:
            return model(image)

    return Built(call, details=details)


def _training(subject: Subject) -> Built:
    model = _build(subject).train().to(subject.device).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # one image has no statistics where a map is pooled to one position
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.05, fused=True)
    image, autocast = _image(subject), _autocast(subject)
    targets = _targets(subject)

    def call() -> None:
        with autocast:
            losses = model(image, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Built(call, details={"parameters": count_parameters(model)})


def _targets(subject: Subject) -> Any:
    """Return a class for each pixel, or objects of random places and sizes with masks."""
    height, width = subject.size
    if subject.task == "segmentation":
        classes = torch.randint(_CLASSES["segmentation"], (1, height, width))
        return classes.to(subject.device)
    side = torch.tensor([width, height])
    corner = torch.rand(_OBJECTS, 2) * side * 0.6
    boxes = torch.cat([corner, corner + side * (0.05 + 0.35 * torch.rand(_OBJECTS, 2))], 1)
    masks = torch.zeros(_OBJECTS, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    target = {"boxes": boxes, "labels": torch.arange(_OBJECTS), "masks": masks}
    return [{name: value.to(subject.device) for name, value in target.items()}]


def _image(subject: Subject) -> Tensor:
    image = torch.randn(1, 3, *subject.size, device=subject.device)
    return image.contiguous(memory_format=torch.channels_last)


def _autocast(subject: Subject) -> torch.autocast:
    kind = torch.device(subject.device).type
    half = subject.dtype != "float32"
    return torch.autocast(kind, dtype=DTYPES[subject.dtype], enabled=half)


if __name__ == "__main__":
    sys.exit(main("dense", about=__doc__ or "", plan=plan, budget=900, apart=True))
