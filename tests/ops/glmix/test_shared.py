"""Clustering and dispatching in one operator, which shares the similarities of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from convattn import ops
from convattn.layers.glmix import GLMix
from convattn.ops import tuned, use_backend
from convattn.ops.dispatch import Choice
from convattn.ops.kernels.native import library
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


SHARING = [
    "shared",
    pytest.param(
        "native", marks=pytest.mark.skipif(not library.available(), reason="no C compiler")
    ),
]


@pytest.fixture(params=["whole", "groups of images", "runs of pixels"])
def _tile(request, monkeypatch):
    if request.param != "whole":
        monkeypatch.setattr(tuned, "SLOT_TILE_LOGITS", 2 * 54 * SLOTS)
    if request.param == "runs of pixels":
        monkeypatch.setattr(tuned, "SLOT_TILE_PIXELS", 7)


def _explained(*tensors: Tensor, stride: int = 1, backend: str = "auto") -> Choice:
    slots, u, scale = tensors
    return ops.explain(
        ops.cluster_and_dispatch, slots, u, scale, _attend, stride=stride, backend=backend
    )


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 8, 6, 9), (0, 8, 3, 3)])
@pytest.mark.parametrize("scale", [0.0, 2.5, -19.0])
@pytest.mark.parametrize("backend", SHARING)
def test_a_path_that_shares_similarities_matches_the_reference(backend, shape, dtype, scale):
    tensors = _inputs(shape, dtype, scale)
    with torch.no_grad():
        if backend == "native" and dtype in (torch.float64, torch.float16):
            with pytest.raises(ValueError, match="it computes float32 and bfloat16, got"):
                _mixed(*tensors, backend=backend)
            return
        actual = _mixed(*tensors, backend=backend)
        expected = _mixed(*(t.double() for t in tensors), backend="reference")
    assert actual.dtype == dtype
    assert_close(actual.double(), expected, dtype)


@torch.no_grad()
def test_similarities_are_shared_where_no_gradient_is_required():
    tensors = _inputs((2, 8, 6, 9), torch.float64)
    assert _explained(*tensors).path == "shared"
    if library.available():
        assert _explained(*(t.float() for t in tensors)).path == "native"


@pytest.mark.usefixtures("_tile")
def test_slots_of_the_whole_batch_and_a_scale_that_is_a_number_are_taken():
    slots, u, scale = _inputs((3, 8, 6, 9), torch.float64)
    with torch.no_grad():
        actual = ops.cluster_and_dispatch(slots[:1], u, float(scale), _attend, backend="shared")
        expected = _mixed(slots[:1].expand(3, -1, -1), u, scale, backend="reference")
    assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("backend", SHARING)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast_reaches_the_attention_between_the_steps(layout, backend):
    linear = nn.Linear(8, 8)
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    u = u.contiguous(memory_format=layout)
    with torch.no_grad():
        expected = ops.cluster_and_dispatch(slots, u, scale, linear, backend="reference")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = ops.cluster_and_dispatch(slots, u, scale, linear, backend=backend)
    assert actual.dtype == torch.bfloat16
    assert_close(actual.float(), expected, torch.bfloat16)


@pytest.mark.parametrize("backend", SHARING)
def test_vectors_without_direction_give_no_nan(backend):
    u = torch.zeros(1, 8, 3, 3)
    slots = torch.zeros(1, SLOTS, 8)
    with torch.no_grad():
        y = ops.cluster_and_dispatch(slots, u, 5.0, lambda s: s + 1, backend=backend)
    torch.testing.assert_close(y, torch.ones_like(u))


@pytest.mark.parametrize("backend", SHARING)
def test_a_nan_reaches_its_image_alone(backend):
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    u[0, 3, 2, 2] = torch.nan
    with torch.no_grad():
        y = _mixed(slots, u, scale, backend=backend)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("backend", SHARING)
def test_a_path_that_cannot_share_similarities_says_why(backend):
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    with pytest.raises(ValueError, match=f"{backend!r} cannot compute this call .*gradient"):
        _mixed(slots, u, scale, backend=backend)
    with torch.no_grad():
        with pytest.raises(ValueError, match="scales up to 20, got scale=1000;"):
            _mixed(slots, u, scale * 400, backend=backend)
        with pytest.raises(ValueError, match="scales up to 20, got scale=nan;"):
            _mixed(slots, u, scale * torch.nan, backend=backend)
        with pytest.raises(ValueError, match="supports stride=1 only, got stride=2;"):
            ops.cluster_and_dispatch(slots, u, scale, _attend, stride=2, backend=backend)
        with pytest.raises(ValueError, match="on the CPU, got meta;"):
            _mixed(*(t.to("meta") for t in (slots, u, scale)), backend=backend)
        with pytest.raises(ValueError, match=r"no rule for torch\.func"):
            torch.func.vmap(lambda u: _mixed(slots[:1], u[None], scale, backend=backend)[0])(u)


def _export_shared(slots: Tensor, u: Tensor, scale: Tensor) -> None:
    class Mixed(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return _mixed(*tensors, backend="shared")

    torch.export.export(Mixed(), (slots, u, scale))


@torch.no_grad()
def test_a_path_that_shares_similarities_is_not_exported():
    with pytest.raises(Exception, match="unknown in a compiled or exported program"):
        _export_shared(*_inputs((2, 8, 6, 9), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_similarities_are_computed_twice_where_they_cannot_be_shared(dtype):
    slots, u, scale = _inputs((2, 8, 6, 9), dtype)
    assert _explained(slots, u, scale).path == "tiled"
    leaves = [t.clone().requires_grad_() for t in (slots, u, scale)]
    assert_close(_mixed(*leaves), _mixed(slots, u, scale, backend="reference"), dtype)
    with torch.no_grad():
        assert _explained(slots, u, 400 * scale).path == "tiled"
        assert _explained(slots, u, scale, stride=2).path == "tiled"
        half = [t.half() for t in (slots, u, scale)]
        assert _explained(*half).path == "sdpa"


def test_a_gradient_required_of_the_attention_alone_is_computed():
    linear = nn.Linear(8, 8).double()
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float64)
    ops.cluster_and_dispatch(slots, u, scale, linear).sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.any()


@torch.no_grad()
def test_more_than_16_million_similarities_are_not_kept():
    u, scale = torch.ones(1).expand(1, 8, 2048, 1024), torch.ones(1)
    for slots, path in [(8, "shared"), (9, "tiled")]:
        choice = _explained(torch.ones(1).expand(1, slots, 8), u, scale)
        assert choice.path == ("native" if path == "shared" and library.available() else path)


@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_dispatches_to_every_so_many_pixels(stride):
    slots, u, scale = _inputs((2, 8, 7, 9), torch.float64)
    with torch.no_grad():
        actual = ops.cluster_and_dispatch(slots, u, scale, _attend, stride=stride)
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
        for backend in ("tiled", "shared"):
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


def test_a_model_with_values_takes_a_map_that_has_none():
    mixer = GLMix(8, slots=4, num_heads=2).eval()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        assert mixer(torch.randn(2, 8, 6, 9)).shape == (2, 8, 6, 9)


@pytest.mark.parametrize(
    ("dtype", "exact_as"), [(torch.float64, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
@pytest.mark.parametrize("backend", SHARING)
def test_the_map_has_the_type_of_the_attended_slots(dtype, exact_as, backend):
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    with torch.no_grad():
        actual, expected = (
            ops.cluster_and_dispatch(slots, u, scale, lambda s: s.to(dtype), backend=backend)
            for backend in (backend, "reference")
        )
    assert actual.dtype == expected.dtype == dtype
    assert_close(actual.float(), expected.float(), exact_as)


@pytest.mark.parametrize("backend", [*SHARING, "tiled", "sdpa", "reference"])
def test_the_attended_slots_are_as_many_as_the_prototypes(backend):
    slots, u, scale = _inputs((2, 8, 6, 9), torch.float32)
    with torch.no_grad(), pytest.raises(ValueError, match=f"equally many, got {SLOTS} and 2"):
        ops.cluster_and_dispatch(slots, u, scale, lambda s: s[:, :2], backend=backend)
    with torch.no_grad(), pytest.raises(ValueError, match=r"attended slots must have shape \(2, "):
        ops.cluster_and_dispatch(slots, u, scale, lambda s: s[..., :2], backend=backend)


def test_an_unknown_backend_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'shared'"):
        _mixed(*_inputs((1, 8, 3, 3), torch.float32), backend="share")
