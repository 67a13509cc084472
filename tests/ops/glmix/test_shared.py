"""Clustering and dispatching in one operator, which shares the similarities of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from convattn import ops
from convattn.layers.glmix import GLMix
from convattn.ops import use_backend
from convattn.ops.glmix import shared, tiled
from convattn.ops.kernels.native import rows
from tests.compare import assert_close
from tests.memory import peak_memory
from tests.ops.glmix.test_slots import SLOTS
from tests.ops.properties import SHAPES, OperatorProperties


def _attend(slots: Tensor) -> Tensor:
    return slots.flip(1) + slots.mean(1, keepdim=True)


def _mixed(*tensors: Tensor, backend: str = "auto") -> Tensor:
    slots, u, scale = tensors
    return ops.cluster_and_dispatch(slots, u, scale, _attend, backend=backend)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 2.5) -> list[Tensor]:
    slots = torch.randn(shape[0], SLOTS, shape[1], dtype=torch.float64)
    u = torch.randn(shape, dtype=torch.float64)
    return [slots.to(dtype), u.to(dtype), torch.tensor([scale], dtype=dtype)]


class TestClusterAndDispatch(OperatorProperties):
    def fast(self, *tensors: Tensor) -> Tensor:
        return _mixed(*tensors)

    def reference(self, *tensors: Tensor) -> Tensor:
        return _mixed(*tensors, backend="reference")

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return _inputs(shape, dtype)


@pytest.fixture(params=["whole", "no compiler", "groups of images", "runs of pixels"])
def _tile(request, monkeypatch):
    if request.param == "no compiler":
        monkeypatch.setattr(rows, "available", lambda: False)
    elif request.param != "whole":
        monkeypatch.setattr(tiled, "TILE_LOGITS", 2 * 54 * SLOTS)
    if request.param == "runs of pixels":
        monkeypatch.setattr(tiled, "TILE_PIXELS", 7)


@pytest.fixture
def kept(monkeypatch) -> list[shared.Kept]:
    """What the shared path keeps, of all its calls."""
    calls: list[shared.Kept] = []
    plain = shared.cluster

    def cluster(keys: Tensor, tokens: Tensor) -> tuple[Tensor, list[shared.Kept]]:
        slots, kept = plain(keys, tokens)
        calls.extend(kept)
        return slots, kept

    monkeypatch.setattr(shared, "cluster", cluster)
    return calls


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 8, 6, 9), (0, 8, 3, 3)])
@pytest.mark.parametrize("scale", [0.0, 2.5, -19.0])
def test_without_gradients_similarities_are_shared(shape, dtype, scale, kept):
    tensors = _inputs(shape, dtype, scale)
    with torch.no_grad():
        actual = _mixed(*tensors, backend="shared")
        expected = _mixed(*(t.double() for t in tensors), backend="reference")
    assert sum(tile.similarities.numel() for tile in kept) == shape[0] * SLOTS * shape[2] * shape[3]
    assert actual.dtype == dtype
    assert_close(actual.double(), expected, dtype)


@pytest.mark.usefixtures("_tile")
def test_slots_of_the_whole_batch_and_a_plain_scale_will_do(kept):
    slots, u, scale = _inputs((3, 8, 6, 9), torch.float64)
    with torch.no_grad():
        actual = ops.cluster_and_dispatch(slots[:1], u, float(scale), _attend)
        expected = _mixed(slots[:1].expand(3, -1, -1), u, scale, backend="reference")
    assert kept
    assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast_reaches_the_attention_between(layout, kept):
    linear = nn.Linear(8, 8)
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    u = u.contiguous(memory_format=layout)
    with torch.no_grad():
        expected = ops.cluster_and_dispatch(slots, u, scale, linear, backend="reference")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = ops.cluster_and_dispatch(slots, u, scale, linear, backend="shared")
    assert all(tile.similarities.dtype == torch.bfloat16 for tile in kept)
    assert kept
    assert_close(actual.float(), expected, torch.bfloat16)


def test_vectors_without_direction_give_no_nan(kept):
    u = torch.zeros(1, 8, 3, 3)
    with torch.no_grad():
        y = ops.cluster_and_dispatch(torch.zeros(1, SLOTS, 8), u, 5.0, lambda s: s + 1)
    assert kept
    torch.testing.assert_close(y, torch.ones_like(u))


def test_what_is_no_number_stays_none():
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    u[0, 3, 2, 2] = torch.nan
    with torch.no_grad():
        y = _mixed(slots, u, scale)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def _large_scale(tensors: list[Tensor]) -> list[Tensor]:
    return [*tensors[:2], torch.tensor([1e3], dtype=tensors[2].dtype)]


def _wants_gradients(tensors: list[Tensor]) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("backend", ["auto", "shared"])
@pytest.mark.parametrize("change", [_large_scale, _wants_gradients])
def test_where_they_cannot_be_shared_they_are_computed_twice(change, backend, kept):
    tensors = change(_inputs((2, 8, 6, 9), torch.float64))
    actual, expected = (_mixed(*tensors, backend=b) for b in (backend, "reference"))
    assert not kept
    assert_close(actual, expected, torch.float64)


def test_a_gradient_wanted_of_the_attention_alone_is_given(kept):
    linear = nn.Linear(8, 8).double()
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float64)
    ops.cluster_and_dispatch(slots, u, scale, linear).sum().backward()
    assert not kept
    assert linear.weight.grad is not None
    assert linear.weight.grad.any()


def test_no_more_is_kept_than_there_is_room_for(monkeypatch, kept):
    monkeypatch.setattr(shared, "KEPT", 2 * 54 * SLOTS)
    with torch.no_grad():
        for images, fits in [(2, True), (3, False)]:
            kept.clear()
            _mixed(*_inputs((images, 8, 6, 9), torch.float32))
            assert bool(kept) == fits


@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_gives_to_every_so_many_pixels(stride, kept):
    slots, u, scale = _inputs((2, 8, 7, 9), torch.float64)
    with torch.no_grad():
        actual = ops.cluster_and_dispatch(slots, u, scale, _attend, stride=stride)
    assert not kept
    assert_close(actual, _mixed(slots, u, scale)[:, :, ::stride, ::stride], torch.float64)


def test_a_stride_is_positive():
    slots, u, scale = _inputs((1, 8, 3, 3), torch.float32)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        ops.cluster_and_dispatch(slots, u, scale, _attend, stride=0)


def test_a_path_of_the_two_operators_is_a_path_of_both():
    tensors = _inputs((2, 8, 6, 9), torch.float64)
    paths = [_mixed(*tensors, backend=b) for b in ("tiled", "sdpa", "reference")]
    assert_close(paths[:2], paths[1:], torch.float64)


def test_similarities_are_multiplied_once():
    """Three products for the pixels rather than four, one exponential rather than two softmaxes."""
    mixer = GLMix(16, slots=4, branches="global").eval()
    u = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        counts = []
        for backend in ("tiled", "auto"):
            with use_backend(backend), _Counted() as calls:
                mixer(u)
            counts.append((calls["aten.bmm"], calls["aten._softmax"], calls["aten.exp_"]))
    assert counts[0][0] - counts[1][0] == 1
    assert counts[0][1] - counts[1][1] == 2
    assert counts[1][2] - counts[0][2] == 1


class _Counted(TorchDispatchMode):
    def __enter__(self) -> dict[str, int]:
        super().__enter__()
        self.calls: dict[str, int] = dict.fromkeys(("aten.bmm", "aten._softmax", "aten.exp_"), 0)
        return self.calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        if name in self.calls:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def test_little_more_than_one_set_of_similarities_is_in_memory():
    u = torch.randn(2, 32, 64, 64).contiguous(memory_format=torch.channels_last)
    slots = torch.randn(2, 16, 32)

    def run() -> Tensor:
        with torch.inference_mode():
            return ops.cluster_and_dispatch(slots, u, 2.0, lambda s: s)

    similarities = 4 * 2 * 16 * 64 * 64
    assert peak_memory(run) < 1.3 * similarities + 4 * u.numel()


def test_a_model_with_values_takes_a_map_that_has_none(kept):
    mixer = GLMix(8, slots=4, num_heads=2).eval()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        assert mixer(torch.randn(2, 8, 6, 9)).shape == (2, 8, 6, 9)
    assert not kept


@pytest.mark.parametrize(
    ("dtype", "exact_as"), [(torch.float64, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_slots_that_come_back_in_another_type_give_it_to_the_map(dtype, exact_as, kept):
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    with torch.no_grad():
        actual, expected = (
            ops.cluster_and_dispatch(slots, u, scale, lambda s: s.to(dtype), backend=backend)
            for backend in ("auto", "reference")
        )
    assert kept
    assert actual.dtype == expected.dtype == dtype
    assert_close(actual.float(), expected.float(), exact_as)


def test_as_many_slots_must_come_back():
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    with torch.no_grad(), pytest.raises(ValueError, match=f"equally many, got {SLOTS} and 2"):
        ops.cluster_and_dispatch(slots, u, scale, lambda s: s[:, :2])
    with torch.no_grad(), pytest.raises(ValueError, match=r"attended slots must have shape \(2, "):
        ops.cluster_and_dispatch(slots, u, scale, lambda s: s[..., :2])


def test_an_unknown_backend_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'shared'"):
        _mixed(*_inputs((1, 8, 3, 3), torch.float32), backend="share")
