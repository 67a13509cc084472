"""The built-in attentions of ACmix by name, and the function that builds an attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convattn.checks import check_choice
from convattn.layers.attention.part import AttentionPart
from convattn.layers.attention.parts import (
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)

AttentionFactory = Callable[[int], AttentionPart]


@dataclass(frozen=True)
class _Named:
    """A built-in attention, the arguments of ACmix that it supports, and fixed arguments."""

    part: Callable[..., AttentionPart]
    takes: tuple[str, ...]
    fixed: dict[str, Any] = field(default_factory=dict)
    sees_all: bool = False  # queries attend to the whole map, so a dilation has no effect


ATTENTIONS = {
    "sliding_window": _Named(
        SlidingWindowAttention, ("num_heads", "window_size", "stride", "dilation", "backend")
    ),
    "window": _Named(WindowAttention, ("num_heads", "window_size", "backend")),
    "shifted_window": _Named(
        WindowAttention, ("num_heads", "window_size", "backend"), fixed={"shifted": True}
    ),
    "global": _Named(GlobalAttention, ("num_heads", "stride", "backend"), sees_all=True),
    "spatial_reduction": _Named(
        SpatialReductionAttention,
        ("in_chans", "num_heads", "reduction", "stride", "backend"),
        sees_all=True,
    ),
    "patchwise": _Named(PatchwiseAttention, ("window_size", "stride", "dilation", "backend")),
}

NUM_HEADS = 4  # the default of the attentions


def make_part(
    attention: str | AttentionPart | AttentionFactory,
    out_chans: int,
    chosen: dict[str, int | None],
    given: dict[str, Any],
) -> AttentionPart:
    """Return the attention, and raise for arguments that it would ignore."""
    set_values = {name: value for name, value in chosen.items() if value is not None}
    if isinstance(attention, str):
        return _make_named_part(attention, out_chans, set_values, given)
    if set_values:
        raise ValueError(
            f"an attention that is not given by name defines {', '.join(set_values)} itself; "
            "leave out these arguments of ACmix"
        )
    is_factory = callable(attention) and not isinstance(attention, nn.Module)
    part = attention(out_chans) if is_factory else attention
    if not isinstance(part, AttentionPart):
        raise TypeError(f"attention must be a name or an AttentionPart, got {type(part).__name__}")
    if part.dim not in (None, out_chans):
        raise ValueError(f"dim of the attention must be out_chans={out_chans}, got {part.dim}")
    if part.stride not in (1, given["stride"]):
        raise ValueError(
            f"the stride of the attention must be 1 or that of ACmix, got {part.stride} "
            f"and stride={given['stride']}"
        )
    return part


def without_attention(part: AttentionPart, stride: int) -> AttentionPart:
    """Return an empty part for ``mix="convolution"``: it keeps the groups of the channels."""
    empty = AttentionPart(part.groups, stride=stride)
    empty.one_map = part.one_map
    return empty


def _make_named_part(
    name: str, out_chans: int, said: dict[str, int], given: dict[str, Any]
) -> AttentionPart:
    check_choice("attention", name, ATTENTIONS)
    named = ATTENTIONS[name]
    if given["dilation"] == 1 or named.sees_all:
        given = {key: value for key, value in given.items() if key != "dilation"}
    options = given | said
    for key in ("num_heads", "window_size", "reduction", "dilation"):
        if key in options and key not in named.takes:
            raise ValueError(f"attention {name!r} takes no {key}, got {key}={options[key]}")
    options = {key: value for key, value in options.items() if key in named.takes}
    return named.part(out_chans, **options, **named.fixed)
