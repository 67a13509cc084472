"""Print docs/surgery.md, with measurements of operators in ten well-known networks.

    python -m examples.surgery > docs/surgery.md

The program needs the extras ``segment`` and ``yolo``. Weights and norm statistics are random;
nothing is downloaded.
"""

from __future__ import annotations

import copy
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import convattn

OPERATORS = {"acmix": "ACmix", "xvolution": "X-volution", "glmix": "GLMix"}
SIZE = (128, 160)


def _unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet34", encoder_weights=None)


def _yolo() -> nn.Module:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolo11n.yaml", verbose=False)


@dataclass(frozen=True)
class Network:
    """A network and the convolutions to replace in it."""

    name: str
    build: Callable[[], nn.Module]
    where: str


NETWORKS = [
    Network("torchvision `resnet50`", torchvision.models.resnet50, "layer3.*.conv2"),
    Network("timm `resnet50`", lambda: timm.create_model("resnet50"), "layer4.*.conv2"),
    Network("timm `regnety_008`", lambda: timm.create_model("regnety_008"), "s4.*.conv?.conv"),
    Network(
        "timm `efficientnet_b0`", lambda: timm.create_model("efficientnet_b0"), "blocks.5.*.conv_*"
    ),
    Network(
        "timm `convnext_tiny`, `conv_mlp=True`",
        lambda: timm.create_model("convnext_tiny", conv_mlp=True),
        "stages.3.*",
    ),
    Network(
        "torchvision `mobilenet_v3_large`",
        torchvision.models.mobilenet_v3_large,
        "features.1[345].block.[013].0",
    ),
    Network(
        "torchvision `densenet121`", torchvision.models.densenet121, "features.denseblock4.*.conv2"
    ),
    Network("torchvision `vgg16_bn`", torchvision.models.vgg16_bn, "features.[34]?"),
    Network("ultralytics `yolo11n`", _yolo, "model.8.m.*.m.*.cv2.conv"),
    Network("segmentation-models-pytorch `Unet`", _unet, "decoder.blocks.[01].conv?.0"),
]


@dataclass
class Measurement:
    """The effect of `convattn.replace` on one network; dictionaries are by operator."""

    matched: int = 0
    left: Counter[str] = field(default_factory=Counter)  # skipped convolutions by reason
    replaced: dict[str, int] = field(default_factory=dict)  # number of convolutions
    parameters: dict[str, int] = field(default_factory=dict)  # afterwards
    difference: dict[str, float] = field(default_factory=dict)  # of the outputs, with keep=True
    before: int = 0  # parameters


def measure(network: Network, size: tuple[int, int] = SIZE) -> Measurement:
    """Replace convolutions of a network by each operator, with ``keep=True`` and without.

    Raises:
        RuntimeError: outputs change their shape or are not finite.
    """
    torch.manual_seed(0)
    found = Measurement()
    with torch.no_grad():
        model = _randomly(network.build())
        found.before = _count(model)
        x = torch.rand(2, 3, *size)
        expected = list(_tensors(model(x)))
        for operator in OPERATORS:
            kept = copy.deepcopy(model)
            report = convattn.replace(kept, operator, where=network.where, keep=True)
            pairs = list(zip(_tensors(kept(x)), expected, strict=True))
            found.difference[operator] = max(float((a - b).abs().max()) for a, b in pairs)
            found.replaced[operator] = len(report.replaced)
            found.matched = len(report.replaced) + len(report.skipped)
            found.left = Counter(_brief(reason) for reason in report.skipped.values())
            mixed = copy.deepcopy(model)
            convattn.replace(mixed, operator, where=network.where)
            found.parameters[operator] = _count(mixed)
            for a, b in zip(_tensors(mixed(x)), expected, strict=True):
                if a.shape != b.shape or not torch.isfinite(a).all():
                    raise RuntimeError(f"{network.name} with {operator} gives {tuple(a.shape)}")
    return found


def _randomly(model: nn.Module) -> nn.Module:
    """Give every batch norm random statistics and weights, as if the network had been trained."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _brief(reason: str) -> str:
    """Return the argument of the convolution that the reason names, in one or two words."""
    for part, brief in {"groups": "grouped", "odd": "even kernel", "padding": "padding"}.items():
        if part in reason:
            return brief
    return reason


def row(network: Network, found: Measurement) -> str:
    """Return a network's row of the table."""
    left = ", ".join(f"{number} {reason}" for reason, number in found.left.items()) or "none"
    cells = [network.name, f"`{network.where}`", str(found.matched)]
    cells += [_alike(found.replaced.values()), left, _millions(found.before)]
    cells += [" / ".join(_millions(found.parameters[o]) for o in OPERATORS)]
    cells += [" / ".join(f"{found.difference[o]:g}" for o in OPERATORS)]
    return f"| {' | '.join(cells)} |"


def _alike(values: Any) -> str:
    return " / ".join(map(str, dict.fromkeys(values)))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def page() -> str:
    """Return the text of docs/surgery.md."""
    rows = []
    for network in NETWORKS:
        print(network.name, file=sys.stderr)
        rows.append(row(network, measure(network)))
    text = Path(__file__).with_name("surgery.md").read_text(encoding="utf-8")
    versions = f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}"
    return (
        text.replace("{{rows}}", "\n".join(rows))
        .replace("{{size}}", f"{SIZE[0]} x {SIZE[1]}")
        .replace("{{versions}}", versions)
    )


if __name__ == "__main__":
    print(page(), end="")
