"""Which path of an operator "auto" takes, asked of the tables that decide it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from convattn.ops.acmix import convolution as acmix
from convattn.ops.convolution import depthwise as _depthwise
from convattn.ops.convolution import gelu as _fused_conv
from convattn.ops.dispatch import Case
from convattn.ops.glmix import slots as glmix
from convattn.ops.sliding import attention
from convattn.ops.tokens import heads as _heads
from convattn.ops.tokens import layer_norm as _layer_norm
from convattn.ops.tokens import linear as _linear
from convattn.ops.windows import paths as _windows
from convattn.ops.xvolution import pixel_shift as xvolution

Choice = tuple[str, Callable[[Any], bool], str]  # path, when it is taken, why
_F32, _BF16 = torch.float32, torch.bfloat16

# What a choice may depend on beside sizes, by the head of its column.
SITUATIONS: dict[str, dict[str, Any]] = {
    "float32": {"device": "cpu", "dtype": _F32},
    "bfloat16": {"device": "cpu", "dtype": _BF16},
    "float32, gradients": {"device": "cpu", "dtype": _F32, "grad": True},
    "bfloat16, gradients": {"device": "cpu", "dtype": _BF16, "grad": True},
    "GPU": {"device": "cuda", "dtype": _BF16},
    "exported": {"device": "cpu", "dtype": _F32, "exporting": True},
}


@dataclass(frozen=True)
class Rules:
    """A table of choices, and the sizes that it is asked about."""

    name: str
    choices: Sequence[Choice]
    sizes: dict[str, dict[str, Any]]
    case: Callable[..., Any] = Case


def _map(size: int, **rest: Any) -> dict[str, Any]:
    return {"height": size, "width": size, **rest}


def _widths(device: str, exporting: bool = False, **rest: Any) -> acmix.Widths:
    """The convolution path looks at widths alone: neither at the type nor at gradients."""
    known = {key: value for key, value in rest.items() if key not in ("dtype", "grad")}
    return acmix.Widths(device=device, exporting=exporting, **known)


def _stage(channels: int, outputs: int, *, stride: int = 1, alone: bool = False) -> dict[str, Any]:
    return {"in_chans": channels, "outputs": outputs, "stride": stride, "alone": alone}


TABLES = (
    Rules(
        "sliding window 7x7",
        attention.SLIDING_RULES,
        {
            "9x9 and smaller": _map(9, window=7),
            "10x10 to 18x18": _map(18, window=7),
            "larger": _map(28, window=7),
        },
    ),
    Rules("GLMix: clustering, dispatching", glmix.MIX_RULES, {"any": _map(56)}),
    Rules("pixel shift", xvolution.RULES, {"any": _map(28, window=3)}),
    Rules(
        "ACmix: convolution",
        acmix.RULES,
        {
            "64 channels": _stage(64, 4),
            "128, stride 2": _stage(128, 4, stride=2),
            "192, 6 heads": _stage(192, 6),
            "256, 4 heads": _stage(256, 4),
            "256, 4 heads, no attention": _stage(256, 4, alone=True),
        },
        _widths,
    ),
    Rules("windows", _windows.WINDOW_RULES, {"any": _map(56, window=7)}),
    Rules(
        "heads of GLNet",
        _heads.RULES,
        {"64 tokens": {"height": 64, "width": 288}, "196 tokens": {"height": 196, "width": 1152}},
    ),
    Rules(
        "depth-wise convolution",
        _depthwise.RULES,
        {"3x3": _map(56, window=3), "5x5": _map(56, window=5)},
    ),
    Rules(
        "linear layers of heads",
        _linear.RULES,
        {
            "512 tokens": {"height": 512, "width": 256},
            "1568 tokens": {"height": 1568, "width": 256},
        },
    ),
    Rules("layer norm", _layer_norm.RULES, {"any": _map(56)}),
    Rules("convolution and GELU", _fused_conv.RULES, {"any": _map(56)}),
)


def path_rows() -> list[tuple[str, ...]]:
    """Return operator, size and the path for each of the situations, with two threads."""
    with _two_threads():
        return [
            (rules.name, size, *(f"`{_chosen(rules, {**how, **fields})[0]}`" for how in _how()))
            for rules in TABLES
            for size, fields in rules.sizes.items()
        ]


def reasons() -> list[str]:
    """Return what every table says of its choices, in the order in which they are asked."""
    return [
        f"**{rules.name}:** " + "; ".join(f"`{path}` - {why}" for path, _, why in rules.choices)
        for rules in TABLES
    ]


@contextmanager
def _two_threads() -> Iterator[None]:
    """A rule may ask how many threads there are: the page is that of more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(rules: Rules, fields: dict[str, Any]) -> Choice:
    case = rules.case(**fields)
    return next(choice for choice in rules.choices if choice[1](case))


def _how() -> list[dict[str, Any]]:
    return list(SITUATIONS.values())
