"""What ACmix refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convattn.layers import ACmix, GlobalAttention

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 3}, "num_heads=3; the nearest num_heads that fits is 2"),
    ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
    ({"out_chans": 18}, "dim=18, num_heads=4; the nearest num_heads that fits is 3"),
    ({"out_chans": -16}, "out_chans must be at least 1, got -16"),
    ({"kernel_size": 2}, "kernel_size must be odd, got 2; use 1 or 3"),
    ({"window_size": 6}, "window_size must be odd, got 6; use 5 or 7"),
    ({"window_size": -7}, "window_size must be at least 1, got -7"),
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"dilation": 0}, "dilation must be at least 1, got 0"),
    ({"attention": "slidingwindow"}, "did you mean 'sliding_window'"),
    ({"shift": "learnt"}, "unknown shift 'learnt'; did you mean 'learned'"),
    ({"mix": "convolutional"}, "unknown mix 'convolutional'; did you mean 'convolution'"),
    ({"backend": "tiled"}, "unknown backend 'tiled'"),
    ({"reduction": 2}, "attention 'sliding_window' takes no reduction, got reduction=2"),
    ({"attention": "global", "window_size": 7}, "takes no window_size, got window_size=7"),
    ({"attention": "window", "dilation": 2}, "takes no dilation, got dilation=2"),
    ({"attention": "patchwise", "num_heads": 4}, "takes no num_heads, got num_heads=4"),
    ({"attention": "patchwise", "out_chans": 20}, "dim=20, share=8; the nearest .* is 10"),
    ({"attention": GlobalAttention, "num_heads": 2}, "defines num_heads itself"),
    ({"attention": GlobalAttention(64)}, "dim of the attention must be out_chans=16, got 64"),
    (
        {"attention": GlobalAttention(16, stride=3), "stride": 2},
        "must be 1 or that of ACmix, got 3",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        ACmix(**({"in_chans": 16} | arguments))


@pytest.mark.parametrize(
    ("attention", "kind"), [(nn.Conv2d(16, 16, 1), "Conv2d"), (None, "NoneType"), (3, "int")]
)
def test_rejects_an_attention_of_another_type(attention, kind):
    message = f"attention must be a name or an AttentionPart, got {kind}"
    with pytest.raises(TypeError, match=message):
        ACmix(16, attention=attention)


def test_sizes_must_be_integers():
    with pytest.raises(TypeError, match=r"stride must be an integer, got 2\.0"):
        ACmix(16, stride=2.0)  # type: ignore[arg-type]


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="heads"):
        ACmix(16, heads=4)  # type: ignore[call-arg]


def test_takes_the_integers_of_numpy():
    acmix = ACmix(np.int64(16), num_heads=np.int32(2))  # type: ignore[arg-type]  # not `int`s
    assert acmix(torch.randn(1, 16, 5, 5)).shape[1] == 16
