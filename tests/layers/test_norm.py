"""The norm of maps is timm's in all but the path that it takes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import timm
import timm.layers
import torch
import torch.fx
from timm.models import create_feature_extractor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convattn.models  # noqa: F401
from convattn.layers.norm import LayerNorm2d
from tests.compare import assert_close, assert_same


def _pair(dim: int = 8, **options: bool) -> tuple[nn.Module, nn.Module]:
    """Return our norm and timm's, of the same weights."""
    ours, theirs = LayerNorm2d(dim, **options), timm.layers.LayerNorm2d(dim, **options)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def _map(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 8, 5, 6)).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}])
def test_equals_the_norm_of_timm(options):
    ours, theirs = _pair(**options)
    assert isinstance(ours, timm.layers.LayerNorm2d)
    assert isinstance(ours, nn.LayerNorm)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours, theirs, [_map()])
    with torch.no_grad():
        x = _map()
        assert_close(ours(x), theirs(x), torch.float32)


def test_copies_compute_the_same():
    ours, _ = _pair()
    x = _map()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is LayerNorm2d
        assert torch.equal(other(x), ours(x))


@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_other_widths_are_errors(options):
    for norm in _pair(**options):
        with torch.no_grad(), pytest.raises(RuntimeError, match="normalized_shape=\\[8\\]"):
            norm(_map(2, 9, 5, 6))


@pytest.fixture
def _fast() -> Iterator[None]:
    before = timm.layers.is_fast_norm()
    timm.layers.set_fast_norm(True)
    yield
    timm.layers.set_fast_norm(before)


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_timms_switch_keeps_the_type_of_autocast(options):
    ours, theirs = _pair(**options)
    assert_same(ours, theirs, [_map()])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = _map()
        y = ours(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, theirs(x))


def test_autocast_follows_timms():
    ours, theirs = _pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for x in (_map(), _map().bfloat16()):
            y, expected = ours(x), theirs(x)
            assert y.dtype == expected.dtype
            assert torch.equal(y, expected)


def test_a_symbolic_trace_keeps_it_in_one_node():
    model = nn.Sequential(_pair()[0], nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    functions = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert functions == ["layer_norm_2d"]
    x = _map()
    assert_same(traced, model, [x])
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glnet_nano", "acmix_swin_nano"])
def test_networks_give_features_and_count_operations(name):
    model = timm.create_model(name).eval()
    assert any(type(m) is LayerNorm2d for m in model.modules())
    x = torch.randn(1, 3, 64, 64)
    stages = [m for m, _ in model.named_children() if m.startswith(("stage", "layers"))]
    with torch.no_grad():
        expected = model(x)
        extractor = create_feature_extractor(model, return_nodes={stages[0]: "first"})
        assert extractor(x)["first"].isfinite().all()
        with FlopCounterMode(display=False) as counter:
            assert_close(model(x), expected, torch.float32)
    assert counter.get_total_flops() > 0
