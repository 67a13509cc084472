"""The precision of a training, also for ``precision=auto``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision

from convattn.training.config import RunConfig

_LIGHTNING = {"32": "32-true", "64": "64-true"}


class HalfImages(HalfPrecision):
    """Lightning's bf16-true, which rounds the images of a batch, but not the targets.

    bfloat16 has eight bits for the position of a box.
    """

    def __init__(self) -> None:
        super().__init__("bf16-true")

    def convert_input(self, data: Any) -> Any:
        """Return a batch with images in bfloat16."""
        if isinstance(data, Mapping) and "image" in data:
            return {**data, "image": super().convert_input(data["image"])}
        return super().convert_input(data)


def resolve_precision(config: RunConfig) -> Any:
    """Return the precision in Lightning's notation.

    Args:
        config: its ``precision``. "auto" is "bf16-mixed" on a GPU that computes bfloat16 in
            hardware, and else "32-true": PyTorch emulates bfloat16 on older GPUs, which is slow.
            "16-mixed" is "bf16-mixed" on a CPU, as in Lightning.

    Returns:
        One of "32-true", "16-mixed", "bf16-mixed", "bf16-true" and "64-true", as `Any`: Lightning
        declares a literal type.
    """
    if config.precision == "16-mixed" and _is_on_cpu(config):
        return "bf16-mixed"
    if config.precision != "auto":
        return _LIGHTNING.get(config.precision, config.precision)
    on_cuda = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    in_hardware = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if in_hardware else "32-true"


def precision_notes(config: RunConfig) -> list[str]:
    """Return a sentence where another precision is used than the one that was given."""
    if config.precision == "16-mixed" and _is_on_cpu(config):
        return ["precision=16-mixed is bf16-mixed on a CPU: PyTorch has no 16-mixed there"]
    return []


def _is_on_cpu(config: RunConfig) -> bool:
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return config.accelerator == "cpu" or (config.accelerator == "auto" and not has_gpu)
