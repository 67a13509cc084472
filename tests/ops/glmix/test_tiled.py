"""The tiled path of clustering and dispatching: many tiles, memory, what transforms it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from convattn import ops
from convattn.ops import tuned, use_backend
from tests.compare import assert_close, assert_same
from tests.memory import LargestTensor, largest_tensor, saved_for_backward
from tests.ops.glmix.test_slots import TestDispatch as Dispatch
from tests.ops.glmix.test_slots import TestSoftClustering as SoftClustering


@pytest.fixture
def _small_tiles(monkeypatch):
    """Five slots: seven pixels a tile, so that most maps have many and the last one is partial."""
    monkeypatch.setattr(tuned, "SLOT_TILE_LOGITS", 40)
    monkeypatch.setattr(tuned, "SLOT_TILE_PIXELS", 7)


@pytest.fixture
def _grouped_images(monkeypatch):
    """Two images of 13 x 2 or 6 x 9 pixels a tile, of a batch of three."""
    monkeypatch.setattr(tuned, "SLOT_TILE_LOGITS", 2 * 54 * 5)


class _Tiled:
    @pytest.mark.skip("its loops over tiles fix the sizes: it refuses to be compiled")
    def test_compiles_whole(self):
        raise NotImplementedError

    def fast(self, *tensors: Tensor) -> Tensor:
        with use_backend("tiled"):
            return super().fast(*tensors)  # type: ignore[misc]


@pytest.mark.usefixtures("_small_tiles")
class TestSoftClusteringInManyTiles(_Tiled, SoftClustering):
    pass


@pytest.mark.usefixtures("_small_tiles")
class TestDispatchInManyTiles(_Tiled, Dispatch):
    pass


@pytest.mark.usefixtures("_grouped_images")
class TestSoftClusteringInGroupsOfImages(_Tiled, SoftClustering):
    pass


@pytest.mark.usefixtures("_grouped_images")
class TestDispatchInGroupsOfImages(_Tiled, Dispatch):
    pass


def _inputs(B: int = 2, C: int = 4, H: int = 5, W: int = 3, M: int = 5) -> list[Tensor]:
    slots, mixed = torch.randn(2, B, M, C, dtype=torch.float64)
    scale = torch.tensor([2.5], dtype=torch.float64)
    return [slots, mixed, torch.randn(B, C, H, W, dtype=torch.float64), scale]


def test_tiled_refuses_function_transforms():
    slots, u = torch.randn(1, 3, 8), torch.randn(1, 8, 5, 6)

    def cluster(u: Tensor) -> Tensor:
        return ops.soft_clustering(slots, u, 2.0, backend="tiled")

    with pytest.raises(ValueError, match=r"'tiled' cannot .* no rule for torch\.func"):
        torch.func.jvp(cluster, (u,), (u,))


def _both(tensors: Sequence[Tensor], backend: str) -> Tensor:
    slots, mixed, u, scale = tensors
    gathered = ops.soft_clustering(slots, u, scale, backend=backend)
    return ops.dispatch(slots, mixed + gathered, u, scale, backend=backend)


@pytest.mark.parametrize("number", [1, 5, 64])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (8, 8)])
@pytest.mark.usefixtures("_small_tiles")
def test_any_number_of_slots_and_pixels_matches_the_reference(size, number):
    height, width = size
    tensors = _inputs(3, 6, height, width, number)
    assert_same(lambda *t: _both(t, "tiled"), lambda *t: _both(t, "reference"), tensors)


@pytest.mark.parametrize("scale", [-60.0, 0.0, 1e3])
@pytest.mark.usefixtures("_small_tiles")
def test_tiles_of_very_different_weight_add_up(scale):
    slots, mixed, u, _ = _inputs(2, 3, 8, 8)
    tensors = [slots, mixed, u, torch.tensor([scale], dtype=torch.float64)]
    assert_same(lambda *t: _both(t, "tiled"), lambda *t: _both(t, "reference"), tensors)


@pytest.mark.usefixtures("_small_tiles")
def test_a_vector_without_direction_in_a_tile_gets_no_gradient_through_it():
    slots, mixed, u, scale = _inputs()
    u[:, :, 2] = 0
    slots[:, 1] = 0
    tensors = [slots, mixed, u, scale]
    assert_same(lambda *t: _both(t, "tiled"), lambda *t: _both(t, "reference"), tensors)


@pytest.mark.parametrize("wanted", range(4))
def test_any_tensor_alone_may_want_a_gradient(wanted):
    found = []
    for backend in ("tiled", "reference"):
        tensors = [t.clone() for t in _inputs_of_seed(0)]
        tensors[wanted].requires_grad_()
        _both(tensors, backend).square().sum().backward()
        found.append(tensors[wanted].grad)
    assert_close(found[0], found[1], torch.float64)


def _inputs_of_seed(seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return _inputs()


@pytest.mark.usefixtures("_small_tiles")
def test_gradients_can_be_differentiated_again():
    tensors = [t.requires_grad_() for t in _inputs(1, 3, 3, 3, 2)]
    torch.autograd.gradgradcheck(lambda *t: _both(t, "tiled"), tensors)


def test_per_image_gradients_and_vmap_take_the_path_that_knows_them():
    slots, mixed, u, scale = _inputs(3)

    def loss(slots: Tensor, mixed: Tensor, u: Tensor) -> Tensor:
        return _both((slots[None], mixed[None], u[None], scale), "auto").square().sum()

    per_image = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(slots, mixed, u)
    for b in range(3):
        one = torch.func.grad(loss, argnums=(0, 1, 2))(slots[b], mixed[b], u[b])
        assert_close([g[b] for g in per_image], list(one), torch.float64)


@pytest.mark.parametrize("trained", [False, True])
def test_forward_mode_takes_sdpa(trained):
    # PyTorch's flash kernel has no forward mode, its formula has
    tensors = [t.requires_grad_(trained) for t in _inputs(2)]
    u = tensors[2]
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), ops.record_paths() as taken:
        tensors[2] = forward_ad.make_dual(u, torch.ones_like(u))
        actual, expected = (
            forward_ad.unpack_dual(_both(tensors, b)).tangent for b in ("auto", "reference")
        )
    steps = [c.path for c in taken if c.operator in ("soft_clustering", "dispatch")]
    assert steps == ["sdpa", "sdpa", "reference", "reference"]
    assert_close(actual, expected, torch.float64)


def test_a_compiled_call_takes_sdpa_and_a_named_tiled_path_says_why_not():
    tensors = [t.float() for t in _inputs()]
    torch._dynamo.reset()
    compiled = torch.compile(_both, backend="eager", fullgraph=True)
    assert_close(compiled(tensors, "auto"), _both(tensors, "reference"), torch.float32)
    with pytest.raises(Exception, match="would fix the sizes of a compiled or exported program"):
        compiled(tensors, "tiled")


def test_float16_is_computed_wider():
    slots, mixed, u, scale = (t.half() for t in _inputs(2, 8))
    long = 6e4 / u.abs().max() * u
    y = _both((slots, mixed, long, scale), "tiled")
    assert y.dtype == torch.float16
    expected = _both([t.float() for t in (slots, mixed, long, scale)], "reference")
    assert_close(y.float() / 6e4, expected / 6e4, torch.float16)


def test_strided_and_transposed_maps_are_read_as_they_lie():
    slots, mixed, u, scale = _inputs(2, 4, 8, 6)
    for view in (u[:, :, ::2, ::3], u.contiguous(memory_format=torch.channels_last)[:, :, ::2]):
        assert_close(
            _both((slots, mixed, view, scale), "tiled"),
            _both((slots, mixed, view, scale), "reference"),
            torch.float64,
        )


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.copied = 0  # bytes of the largest copy

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        result = func(*args, **(kwargs or {}))
        if name in ("clone", "copy_", "_to_copy"):
            self.copied = max(self.copied, result.nbytes)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_inference_copies_no_map(dtype):
    slots, mixed, u, scale = (t.to(dtype) for t in _inputs(2, 16, 24, 20, 8))
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = [slots, mixed, u.contiguous(memory_format=layout), scale]
        with torch.inference_mode(), _Operations() as operations:
            _both(tensors, "tiled")
        assert operations.count["bmm"] == 4
        assert operations.copied < u.nbytes / 4


def test_training_computes_the_logits_once_more_and_no_more():
    leaves = [t.requires_grad_() for t in _inputs(2, 16, 24, 20, 8)]
    with _Operations() as operations:
        _both(leaves, "tiled").sum().backward()
    # Clustering 2 and 3, two of which are double; dispatching 2 and 5.
    assert operations.count["bmm"] == 5 + 7


def _clustering_and_back(backend: str, side: int) -> Callable[[], Tensor]:
    B, C, M = 1, 16, 64
    u = torch.randn(B, C, side, side).contiguous(memory_format=torch.channels_last)
    u.requires_grad_()
    slots = torch.randn(B, M, C, requires_grad=True)
    scale = torch.ones(1, requires_grad=True)

    def run() -> Tensor:
        gathered = ops.soft_clustering(slots, u, scale, backend=backend)
        return ops.dispatch(slots, gathered, u, scale, backend=backend)

    return run


@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_similarity_maps_are_never_stored(backend):
    side = 192
    similarity_map = 64 * side**2 * 4
    # The largest is a map of 16 channels, or two tiles of logits.
    assert largest_tensor(_clustering_and_back(backend, side)) <= similarity_map / 4
    assert largest_tensor(_clustering_and_back("reference", side)) >= similarity_map


def test_less_than_a_similarity_map_is_kept_for_backward():
    similarity_map = 64 * 64**2 * 4
    assert saved_for_backward(_clustering_and_back("tiled", 64)) < similarity_map / 2
    assert saved_for_backward(_clustering_and_back("reference", 64)) > 2 * similarity_map


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_what_is_kept_for_backward_is_the_map_and_the_slots(side):
    kept = saved_for_backward(_clustering_and_back("tiled", side))
    u, slots = 16 * side**2 * 4, 64 * 16 * 4
    tiles = -(-(side**2) // tuned.SLOT_TILE_PIXELS)
    assert kept <= u + 8 * slots + 64 * tiles * 4


def test_tiles_do_not_grow_with_the_map():
    u_bytes = 16 * 256**2 * 4
    with torch.inference_mode(), LargestTensor() as largest:
        _clustering_and_back("tiled", 256)()
    assert largest.bytes == u_bytes
    slots, u = torch.randn(1, 64, 2), torch.randn(1, 2, 256, 256)
    with torch.inference_mode(), LargestTensor() as largest:
        ops.soft_clustering(slots, u, 1.0, backend="tiled")
    assert largest.bytes <= tuned.SLOT_TILE_LOGITS * 4


@pytest.mark.slow
def test_compiled_code_is_one_graph_for_all_sizes():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: _both(t, "auto"), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in [(9, 7), (8, 10), (70, 70)]:
            tensors = [t.float() for t in _inputs(2, 8, *size)]
            assert_close(compiled(*tensors), _both(tensors, "reference"), torch.float32)
