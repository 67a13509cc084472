"""Parameters and multiply-adds of a model, and the figures of its paper."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.models._registry import create_model
from convattn.ops.dispatch import use_backend

_TABLE = Path(__file__).with_name("papers.csv")


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's ImageNet-1k results."""

    name: str  # in the registry of this package or of timm
    paper: str
    model: str  # name in the paper
    params_m: float
    macs_g: float
    top1: float
    training: str
    code_params: int | None  # of the published code, 1,000 classes; None without published code
    source: str


def count_parameters(model: nn.Module | str) -> int:
    """Return the number of parameters of a model.

    Args:
        model: a module, or the name of a model, which is built on the meta device.
    """
    return sum(p.numel() for p in _on_meta(model).parameters())


def count_macs(model: nn.Module | str, input_size: tuple[int, ...] | None = None) -> int:
    """Return the multiply-adds of the forward pass of one image.

    The pass runs on the meta device, without arithmetic. Papers call this number "FLOPs".

    Args:
        model: a module, or the name of a model.
        input_size: (channels, height, width); by default that of the model's pretrained_cfg.
    """
    built = _on_meta(model).eval()
    size = input_size or _own_size(built)
    return count_call_macs(built, torch.empty((1, *size), device="meta", dtype=_dtype(built)))


def count_call_macs(call: Callable[..., Any], *inputs: Any) -> int:
    """Return the multiply-adds of a call.

    The number is half of the count of `torch.utils.flop_counter` with every operator as matrix
    products or convolutions.

    Args:
        call: a module or a function, such as one on the meta device.
        *inputs: its arguments.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), use_backend("reference"):
        call(*inputs)
    return counter.get_total_flops() // 2


def paper_row(name: str) -> PaperRow | None:
    """Return the paper's figures of a model, by its registered name; None if there are none."""
    return next((row for row in paper_rows() if row.name == name), None)


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """Return every row of the papers' ImageNet-1k tables, baselines included."""
    with _TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(
            PaperRow(
                name=row["name"],
                paper=row["paper"],
                model=row["model"],
                params_m=float(row["params_m"]),
                macs_g=float(row["macs_g"]),
                top1=float(row["top1"]),
                training=row["training"],
                code_params=int(row["code_params"]) if row["code_params"] else None,
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )


def _on_meta(model: nn.Module | str) -> nn.Module:
    if isinstance(model, str):
        with torch.device("meta"):
            return create_model(model)
    return copy.deepcopy(model).to("meta")


def _own_size(model: nn.Module) -> tuple[int, ...]:
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict):
        raise ValueError(
            f"a {type(model).__name__} has no input size of its own; give "
            "input_size=(channels, height, width)"
        )
    return (getattr(model, "in_chans", cfg["input_size"][0]), *cfg["input_size"][1:])


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
