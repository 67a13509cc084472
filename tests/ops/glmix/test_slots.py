from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convattn import ops
from convattn.ops.reference import glmix as reference
from tests.compare import assert_close, assert_same, values_and_gradients
from tests.ops.properties import OperatorProperties

SLOTS = 5


def _slots(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape[0], SLOTS, shape[1], dtype=torch.float64).to(dtype)


def _map(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def _scale(dtype: torch.dtype) -> Tensor:
    return torch.tensor([2.5], dtype=dtype)


class TestPoolSlots(OperatorProperties):
    def fast(self, *tensors: Tensor) -> Tensor:
        return ops.pool_slots(tensors[0], (3, 4))

    def reference(self, *tensors: Tensor) -> Tensor:
        return reference.pool_slots(tensors[0], (3, 4))

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return [_map(shape, dtype)]


class TestSoftClustering(OperatorProperties):
    def fast(self, *tensors: Tensor) -> Tensor:
        return ops.soft_clustering(*tensors)

    def reference(self, *tensors: Tensor) -> Tensor:
        return ops.soft_clustering(*tensors, backend="reference")

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return [_slots(shape, dtype), _map(shape, dtype), _scale(dtype)]


class TestDispatch(OperatorProperties):
    def fast(self, *tensors: Tensor) -> Tensor:
        return ops.dispatch(*tensors)

    def reference(self, *tensors: Tensor) -> Tensor:
        return ops.dispatch(*tensors, backend="reference")

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        slots = [_slots(shape, dtype), _slots(shape, dtype)]
        return [*slots, _map(shape, dtype), _scale(dtype)]


class TestKmeansClustering(OperatorProperties):
    def fast(self, *tensors: Tensor) -> Tensor:
        slots, u = tensors
        return ops.kmeans_clustering(slots, u, 2)

    def reference(self, *tensors: Tensor) -> Tensor:
        slots, u = tensors
        return reference.kmeans_clustering(slots, u, 2)

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        # Pixels close to one of the slots each, so that rounding moves none to another.
        B, C, H, W = shape
        slots = torch.eye(min(C, SLOTS), C).expand(B, -1, -1)
        nearest = torch.arange(H * W) % slots.shape[1]
        u = slots[:, nearest].transpose(1, 2).unflatten(2, (H, W)) + 0.1 * torch.randn(shape)
        return [slots.clone().to(dtype), u.to(dtype)]


@given(st.tuples(*[st.integers(1, 9)] * 4), st.tuples(*[st.integers(1, 6)] * 2))
def test_pooling_is_adaptive_average_pooling(shape, grid):
    x = _map(shape, torch.float64)
    expected = F.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)
    for pool in (ops.pool_slots, reference.pool_slots):
        assert_close(pool(x, grid), expected, torch.float64)


def test_exported_pooling_takes_maps_of_any_size():
    class Pool(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.pool_slots(x, (3, 4))

    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(Pool(), (torch.rand(2, 5, 9, 7),), dynamic_shapes={"x": sizes})
    assert "adaptive" not in str(exported.graph)
    for shape in [(2, 5, 9, 7), (1, 5, 12, 4), (3, 5, 2, 31)]:
        x = _map(shape, torch.float32)
        expected = F.adaptive_avg_pool2d(x, (3, 4)).flatten(2).transpose(1, 2)
        assert_close(exported.module()(x), expected, torch.float32)


@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(1, 7), st.floats(-9, 9))
def test_every_size_matches_the_reference(shape, number, scale):
    B, C = shape[:2]
    slots, mixed = torch.randn(2, B, number, C, dtype=torch.float64)
    tensors = [slots, mixed, _map(shape, torch.float64), torch.tensor([scale]).double()]
    assert_same(ops.dispatch, reference.dispatch, tensors)
    del tensors[1]
    assert_same(ops.soft_clustering, reference.soft_clustering, tensors)


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "reference"])
def test_a_sharp_clustering_picks_the_nearest_pixel(backend):
    u = torch.eye(4, dtype=torch.float64).reshape(1, 4, 2, 2)
    slots = torch.tensor([[[0, 0, 3.0, 0], [7.0, 0, 0, 0]]], dtype=torch.float64)
    expected = torch.tensor([[[0, 0, 1.0, 0], [1.0, 0, 0, 0]]], dtype=torch.float64)
    actual = ops.soft_clustering(slots, u, 1e3, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "reference"])
def test_no_scale_means_the_plain_mean(backend):
    u, slots = _map((2, 8, 5, 3), torch.float64), _slots((2, 8), torch.float64)
    clustered = ops.soft_clustering(slots, u, 0.0, backend=backend)
    torch.testing.assert_close(clustered, u.mean(dim=(2, 3))[:, None].expand_as(clustered))
    given_back = ops.dispatch(slots, slots, u, 0.0, backend=backend)
    torch.testing.assert_close(given_back, slots.mean(dim=1)[..., None, None].expand_as(u))


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "reference"])
def test_slots_of_the_whole_batch_are_shared(backend):
    u, slots = _map((3, 8, 4, 4), torch.float64), _slots((1, 8), torch.float64)
    one = ops.soft_clustering(slots, u, 3.0, backend=backend)
    torch.testing.assert_close(one, ops.soft_clustering(slots.expand(3, -1, -1), u, 3.0))
    torch.testing.assert_close(
        ops.dispatch(slots, one, u, 3.0, backend=backend),
        ops.dispatch(slots.expand(3, -1, -1), one, u, 3.0),
    )


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_vector_without_direction_gives_no_nan(dtype, backend):
    u = torch.zeros(1, 8, 3, 3, dtype=dtype, requires_grad=True)
    slots = torch.zeros(1, SLOTS, 8, dtype=dtype, requires_grad=True)
    clustered = ops.soft_clustering(slots, u, 5.0, backend=backend)
    y = ops.dispatch(slots, clustered, u, 5.0, backend=backend)
    gradients = torch.autograd.grad(y.sum(), (u, slots))
    assert not y.any()
    # What is left is the gradient through the values: a mean over nine pixels, given back to nine.
    assert_close(gradients[0], torch.ones_like(u), dtype)
    assert not gradients[1].any()


def test_a_pixel_without_direction_gets_no_gradient_through_it():
    u = _map((1, 8, 3, 3), torch.float64)
    u[..., 1, 1] = 0
    tensors = [_slots((1, 8), torch.float64), u]
    assert_same(
        lambda slots, u: ops.dispatch(slots, slots, u, 5.0),
        lambda slots, u: ops.dispatch(slots, slots, u, 5.0, backend="reference"),
        tensors,
    )
    gradient = values_and_gradients(lambda s, u: ops.dispatch(s, s, u, 5.0), tensors)[2]
    assert not gradient[..., 1, 1].any()
    assert gradient[..., 0, 0].any()


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "reference"])
def test_half_precision_holds_vectors_longer_than_its_largest_number(backend):
    u = 2.5e4 * torch.randn(1, 8, 5, 5).sign()  # length 7e4; float16 ends at 65504
    slots = 2.5e4 * torch.randn(1, SLOTS, 8).sign()
    expected = ops.soft_clustering(slots, u, 20.0) / 2.5e4
    actual = ops.soft_clustering(slots.half(), u.half(), 20.0, backend=backend) / 2.5e4
    assert_close(actual.float(), expected, torch.float16)


def test_kmeans_in_half_precision_counts_beyond_its_largest_number():
    u = torch.ones(1, 2, 260, 260, dtype=torch.float16)
    centroids = ops.kmeans_clustering(torch.ones(1, 1, 2, dtype=torch.float16), u, 1)
    assert_close(centroids, torch.ones_like(centroids), torch.float16)


def test_kmeans_keeps_an_empty_slot_where_it_is():
    u = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    slots = torch.tensor([[[5.0, 1.0], [-2.0, 3.0]]])
    centroids = ops.kmeans_clustering(slots, u, 3)
    torch.testing.assert_close(centroids, torch.tensor([[[1.0, 0.0], [-2.0, 3.0]]]))


def test_kmeans_moves_with_each_iteration():
    u = _map((1, 4, 8, 8), torch.float64)
    slots = u[:, :, :1, :SLOTS].flatten(2).transpose(1, 2)
    one, three = (ops.kmeans_clustering(slots, u, n) for n in (1, 3))
    again = ops.kmeans_clustering(ops.kmeans_clustering(one, u, 1), u, 1)
    torch.testing.assert_close(three, again)
    assert not torch.allclose(one, three)


@pytest.mark.parametrize("grid", [(0, 4), (3, -1)])
def test_a_grid_must_be_positive(grid):
    with pytest.raises(ValueError, match="of the grid must be at least 1"):
        ops.pool_slots(torch.randn(1, 2, 3, 3), grid)


@pytest.mark.parametrize("grid", [4, (2,), (2, 2, 2)])
def test_a_grid_must_have_rows_and_columns(grid):
    with pytest.raises(ValueError, match=r"grid must be \(rows, columns\), got"):
        ops.pool_slots(torch.randn(1, 2, 3, 3), grid)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 7), (3, 5, 8), (2, 0, 8)])
def test_slots_must_fit_the_map(shape):
    u, slots = torch.randn(2, 8, 4, 4), torch.randn(shape)
    message = r"slots must have shape \(2, slots, 8\) for u of shape \(2, 8, 4, 4\), got"
    with pytest.raises(ValueError, match=message):
        ops.soft_clustering(slots, u, 1.0)
    with pytest.raises(ValueError, match=message):
        ops.kmeans_clustering(slots, u, 1)
    with pytest.raises(ValueError, match=message):
        ops.dispatch(torch.randn(2, 5, 8), slots, u, 1.0)


def test_there_must_be_a_prototype_for_each_slot():
    with pytest.raises(ValueError, match="must be equally many, got 4 and 5"):
        ops.dispatch(torch.randn(1, 4, 8), torch.randn(1, 5, 8), torch.randn(1, 8, 2, 2), 1.0)


def test_an_unknown_backend_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sdpa'"):
        ops.soft_clustering(torch.randn(1, 4, 8), torch.randn(1, 8, 2, 2), 1.0, backend="spda")


def test_a_map_has_four_dimensions():
    with pytest.raises(ValueError, match=r"must have shape \(B, C, H, W\), got \(1, 8, 2\)"):
        ops.soft_clustering(torch.randn(1, 4, 8), torch.randn(1, 8, 2), 1.0)


def test_kmeans_needs_an_iteration():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        ops.kmeans_clustering(torch.randn(1, 4, 8), torch.randn(1, 8, 2, 2), 0)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (torch.ones(2), ValueError, r"scale must have one element, got shape \(2,\)"),
        (None, TypeError, "scale must be a number or a tensor, got None"),
    ],
)
def test_the_scale_is_one_number(scale, error, message):
    slots, u = torch.randn(1, 4, 8), torch.randn(1, 8, 2, 2)
    with pytest.raises(error, match=message):
        ops.soft_clustering(slots, u, scale)
    with pytest.raises(error, match=message):
        ops.dispatch(slots, slots, u, scale)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (None, "slots must be a tensor, got NoneType"),
        (torch.ones(1, 4, 8, dtype=torch.int64), r"slots must be floating point, got torch\.int64"),
    ],
)
def test_slots_must_be_floating_point_tensors(slots, message):
    with pytest.raises(TypeError, match=message):
        ops.soft_clustering(slots, torch.randn(1, 8, 2, 2), 1.0)
