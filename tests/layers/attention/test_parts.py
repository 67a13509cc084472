from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from convattn.layers import (
    AttentionPart,
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from convattn.layers.attention.parts import position_grid
from convattn.ops import patchwise_aggregate, sliding_window_attention
from convattn.ops.reference.attention import neighbourhoods
from tests.compare import assert_close
from tests.layers.properties import randomise


def _qkv(*shape: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64) for _ in range(3))


def test_the_grid_runs_from_one_border_to_the_other():
    grid = position_grid(torch.empty(3, 8, 3, 5))
    assert_close(grid[0, 0], torch.linspace(-1, 1, 5).expand(3, 5), torch.float32)
    assert_close(grid[0, 1], torch.linspace(-1, 1, 3)[:, None].expand(3, 5), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_grid_has_the_type_and_device_of_the_map(dtype):
    grid = position_grid(torch.empty(1, 1, 200, 7, dtype=dtype))
    assert grid.dtype == dtype
    exact = torch.linspace(-1, 1, 200, dtype=torch.float64)
    assert_close(grid[0, 1, :, 0].double(), exact, dtype)
    assert position_grid(torch.empty(1, 1, 2, 2, device="meta")).is_meta


def test_a_sliding_window_adds_learnt_relative_positions():
    part = randomise(SlidingWindowAttention(8, num_heads=2, window_size=3)).double()
    q, k, v = _qkv(1, 8, 6, 5)
    position = part.pos_proj(position_grid(q))
    shown = neighbourhoods(position, 3, 1, 1)
    relative = (position[:, :, None] - shown)[:, None]
    keys = neighbourhoods(k, 3, 1, 1).unflatten(1, (2, 4)) + relative
    logits = (q.unflatten(1, (2, 4))[:, :, :, None] * keys).sum(2) / 2
    values = neighbourhoods(v, 3, 1, 1).unflatten(1, (2, 4))
    expected = (logits.softmax(2)[:, :, None] * values).sum(3).flatten(1, 2)
    assert_close(part(q, k, v), expected, torch.float64)


def test_a_bias_is_looked_up_by_relative_position():
    part = WindowAttention(4, num_heads=1, window_size=3)
    offsets = torch.arange(25.0).reshape(25, 1)  # row by row over offsets from -2 to 2
    part.relative_position_bias_table.data.copy_(offsets)
    bias = part.bias()
    assert bias.shape == (1, 9, 9)
    for query in range(9):
        for key in range(9):
            down, right = query // 3 - key // 3, query % 3 - key % 3
            assert bias[0, query, key] == 5 * (down + 2) + right + 2


@pytest.mark.parametrize(
    ("size", "shifts"), [((7, 8), (0, 3)), ((9, 6), (3, 0)), ((14, 14), (3, 3)), ((1, 1), (0, 0))]
)
def test_windows_shift_along_axes_that_are_longer(size, shifts):
    part = WindowAttention(4, window_size=7, shifted=True)
    x = torch.randn(1, 4, *size)
    rolled = part.prepare(x)
    assert torch.equal(rolled, x.roll((-shifts[0], -shifts[1]), (2, 3)))
    assert torch.equal(part.restore(rolled), x)
    assert torch.equal(WindowAttention(4, window_size=7).prepare(x), x)


@pytest.mark.parametrize(("reduction", "reduced"), [(1, (9, 7)), (2, (4, 3)), (8, (1, 1))])
def test_spatial_reduction_takes_any_size(reduction, reduced):
    part = SpatialReductionAttention(16, reduction=reduction)
    x = torch.randn(2, 16, 9, 7)
    context = part.context(x)
    assert context.shape == (2, 16, *reduced)
    spread = part.spread(context, (9, 7))
    assert spread.shape == x.shape
    for i, j in [(0, 0), (8, 6), (4, 5)]:
        cell = context[
            :, :, min(i // reduction, reduced[0] - 1), min(j // reduction, reduced[1] - 1)
        ]
        assert torch.equal(spread[:, :, i, j], cell)


def test_spatial_reduction_ignores_incomplete_patches():
    part = SpatialReductionAttention(4, num_heads=1, reduction=4).double()
    x = torch.randn(1, 4, 7, 8).double()
    assert_close(part.context(x), part.norm(part.reduce(x[:, :, :4])), torch.float64)


def test_spatial_reduction_pads_maps_that_are_too_small():
    part = SpatialReductionAttention(4, num_heads=1, reduction=4).double()
    x = torch.randn(1, 4, 2, 8).double()
    padded = torch.cat([x, torch.zeros(1, 4, 2, 8)], dim=2)
    assert_close(part.context(x), part.norm(part.reduce(padded)), torch.float64)


def test_spatial_reduction_normalises_the_channels():
    context = SpatialReductionAttention(64, reduction=2).context(3 + torch.randn(1, 64, 8, 8))
    assert_close(context.mean(dim=1), torch.zeros(1, 4, 4), torch.float32)
    assert_close(context.var(dim=1, correction=0), torch.ones(1, 4, 4), torch.float32)


def test_patchwise_weights_come_from_query_and_patch():
    part = randomise(PatchwiseAttention(16, window_size=3, stride=2, dilation=2)).double().eval()
    q, k = _qkv(2, 4, 7, 6)[:2]
    v = torch.randn(2, 16, 7, 6).double()
    patch = neighbourhoods(k, 3, 2, 2).flatten(1, 2)  # channel by channel, its nine pixels
    weights = part.mlp(torch.cat([q[:, :, ::2, ::2], patch], dim=1)).unflatten(1, (2, 9))
    expected = patchwise_aggregate(weights, v, kernel_size=3, stride=2, dilation=2)
    assert_close(part(q, k, v), expected, torch.float64)


def test_a_part_without_forward_raises():
    with pytest.raises(NotImplementedError):
        AttentionPart((1, 1, 1))(*_qkv(1, 2, 3, 3))


def test_a_global_query_sees_the_whole_map():
    q, k, v = (x.requires_grad_() for x in _qkv(1, 8, 5, 6))
    GlobalAttention(8, num_heads=2, stride=2)(q, k, v)[0, :, 1, 1].sum().backward()
    assert v.grad is not None
    assert v.grad.abs().sum(dim=1).gt(0).all()
    assert q.grad is not None
    assert q.grad.abs().sum(dim=(0, 1)).nonzero().tolist() == [[2, 2]]


def test_a_sliding_window_passes_its_geometry_on():
    part = SlidingWindowAttention(8, num_heads=2, window_size=5, stride=2, dilation=3).double()
    q, k, v = _qkv(1, 8, 11, 12)
    expected = sliding_window_attention(
        q,
        k,
        v,
        num_heads=2,
        window_size=5,
        stride=2,
        dilation=3,
        position=part.pos_proj(position_grid(q)),
    )
    assert_close(part(q, k, v), expected, torch.float64)


WRONG: list[tuple[type[AttentionPart], dict[str, Any], str]] = [
    (SlidingWindowAttention, {"num_heads": 3}, "dim=16, num_heads=3; the nearest .* is 2"),
    (SlidingWindowAttention, {"window_size": 6}, "window_size must be odd, got 6; use 5 or 7"),
    (SlidingWindowAttention, {"stride": 0}, "stride must be at least 1, got 0"),
    (SlidingWindowAttention, {"dilation": -2}, "dilation must be at least 1, got -2"),
    (SlidingWindowAttention, {"backend": "tile"}, "did you mean 'tiled'"),
    (WindowAttention, {"window_size": 0}, "window_size must be at least 1, got 0"),
    (WindowAttention, {"num_heads": 5}, "dim=16, num_heads=5; the nearest .* is 4"),
    (GlobalAttention, {"num_heads": 0}, "num_heads must be at least 1, got 0"),
    (SpatialReductionAttention, {"reduction": 0}, "reduction must be at least 1, got 0"),
    (PatchwiseAttention, {"window_size": 4}, "window_size must be odd, got 4"),
    (PatchwiseAttention, {"share": 3}, "dim=16, share=3; the nearest share that fits is 2"),
]


@pytest.mark.parametrize(("part", "arguments", "message"), WRONG)
def test_rejects(part, arguments, message):
    with pytest.raises(ValueError, match=message):
        part(16, **arguments)


@pytest.mark.parametrize("part", dict.fromkeys(part for part, _, _ in WRONG))
def test_unknown_keywords_are_refused(part):
    with pytest.raises(TypeError, match="heads"):
        part(16, heads=4)


def test_patchwise_needs_four_groups():
    with pytest.raises(ValueError, match="groups of v"):
        PatchwiseAttention(6, share=1)


@pytest.mark.parametrize("size", [(5, 6), (1, 1)])
def test_tokens_attend_and_are_attended_to(size):
    part = randomise(GlobalAttention(8, num_heads=2, proj=True)).double()
    maps, tokens = _qkv(2, 8, *size), _qkv(2, 8, 3, 1)
    y, u = part.forward_tokens(*maps, *tokens)
    # the same as a longer map of one column, as this attention knows no positions
    pairs = zip(maps, tokens, strict=True)
    columns = [torch.cat([t, x.flatten(2)[..., None]], dim=2) for x, t in pairs]
    expected = part(*columns)
    assert_close(u, expected[:, :, :3], torch.float64)
    assert_close(y, expected[:, :, 3:].reshape(y.shape), torch.float64)
    assert y.shape == maps[0].shape


def test_tokens_stand_beside_the_reduced_map():
    part = SpatialReductionAttention(8, num_heads=2, reduction=2, stride=2).double()
    (q, _, _), (k, v, _) = _qkv(1, 8, 6, 4), _qkv(1, 8, 3, 2)
    y, u = part.forward_tokens(q, k, v, *(q[:, :, :1, :1], k[:, :, :1, :1], v[:, :, :1, :1]))
    assert (y.shape, u.shape) == ((1, 8, 3, 2), (1, 8, 1, 1))
    # a token with the query, key and value of the first pixel is that pixel
    assert_close(u, y[:, :, :1, :1], torch.float64)


def test_proj_adds_a_projection():
    q, k, v = _qkv(1, 8, 5, 6)
    for kind in (GlobalAttention, SpatialReductionAttention):
        plain, part = kind(8, num_heads=2), randomise(kind(8, num_heads=2, proj=True)).double()
        assert not [name for name, _ in plain.named_parameters() if "proj" in name]
        assert_close(part(q, k, v), part.proj(plain.double()(q, k, v)), torch.float64)
