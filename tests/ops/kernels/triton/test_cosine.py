from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convattn import ops
from convattn.ops import reference
from convattn.ops.kernels import triton as kernels
from tests.compare import assert_close, assert_same, values_and_gradients

pytest.importorskip("triton")

Function = Callable[..., Tensor]


def _cluster(device: str) -> Function:
    def cluster(slots: Tensor, other: Tensor, u: Tensor, scale: Tensor) -> Tensor:
        return kernels.cluster(slots.to(device), u.to(device), scale.to(device)).cpu()

    return cluster


def _cluster_reference() -> Function:
    def cluster(slots: Tensor, other: Tensor, u: Tensor, scale: Tensor) -> Tensor:
        return reference.glmix.soft_clustering(slots, u, scale)

    return cluster


def _dispatch(device: str) -> Function:
    def dispatch(*tensors: Tensor) -> Tensor:
        prototypes, slots, u, scale = (t.to(device) for t in tensors)
        return kernels.disperse(prototypes, slots, u, scale).cpu()

    return dispatch


def _dispatch_reference() -> Function:
    return reference.glmix.dispatch


BOTH = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(_cluster, _cluster_reference), (_dispatch, _dispatch_reference)],
    ids=["cluster", "dispatch"],
)


def _inputs(
    images: int,
    slots: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Prototypes, slots, map and scale; one pixel and one prototype have no direction."""
    prototypes, values = torch.randn(2, images, slots, channels, dtype=torch.float64)
    u = torch.randn(images, channels, height, width, dtype=torch.float64)
    prototypes[0, -1] = 0
    u[0, :, -1, 0] = 0
    scale = torch.tensor([3.0], dtype=torch.promote_types(dtype, torch.float32))
    return [*(t.to(dtype) for t in (prototypes, values, u)), scale]


QUICK = [(1, 5, 8, 3, 4), (1, 1, 3, 1, 1)]
# Many channels, several blocks of slots and of channels; the last are cut into parts.
SLOW = [
    (2, 5, 8, 6, 9),
    (1, 33, 20, 7, 5),
    (2, 64, 40, 7, 7),
    (1, 49, 96, 9, 5),
    (1, 9, 70, 3, 41),
    (1, 3, 5, 17, 31),
    (1, 300, 5, 3, 4),
]


@BOTH
@pytest.mark.parametrize(
    "sizes", [*QUICK, *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SLOW)]
)
def test_matches_the_reference(ours, theirs, sizes, device):
    assert_same(ours(device), theirs(), _inputs(*sizes))


@BOTH
def test_no_image_gives_nothing(ours, theirs, device):
    tensors = [t[:0] if t.dim() > 1 else t for t in _inputs(1, 5, 8, 3, 4)]
    assert_same(ours(device), theirs(), tensors)


@BOTH
def test_parts_of_the_long_side_add_up(ours, theirs, device):
    from convattn.ops.kernels.triton import cosine

    assert cosine._plan(torch.empty(1, 4, 8), 4, 3 * cosine.LEAST * 32).parts == 3
    before, cosine.LEAST = cosine.LEAST, 1
    try:
        assert_same(ours(device), theirs(), _inputs(1, 35, 4, 13, 6))
    finally:
        cosine.LEAST = before


@BOTH
def test_matches_the_reference_in_single_precision(ours, theirs, device):
    assert_same(ours(device), theirs(), _inputs(1, 7, 20, 6, 7, torch.float32))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(ours, theirs, dtype, device):
    tensors = _inputs(1, 6, 8, 6, 9, dtype)
    halves = values_and_gradients(ours(device), tensors)
    singles = values_and_gradients(theirs(), [t.float() for t in tensors])
    assert halves[0].dtype == dtype
    for half, single in zip(halves, singles, strict=True):
        assert_close(half.float(), single, dtype)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bears_large_values(ours, theirs, dtype, device):
    tensors = [t * 30 if t.dim() > 1 else t for t in _inputs(1, 6, 8, 4, 5, dtype)]
    assert all(t.isfinite().all() for t in values_and_gradients(ours(device), tensors))


@BOTH
def test_a_sharp_softmax_does_not_overflow(ours, theirs, device):
    *tensors, scale = _inputs(1, 6, 8, 6, 9)
    assert_same(ours(device), theirs(), [*tensors, 300 * scale])


@BOTH
@pytest.mark.slow
def test_memory_layout_does_not_matter(ours, theirs, device):
    tensors = _inputs(2, 5, 8, 3, 4)
    expected = values_and_gradients(theirs(), tensors)

    def channels_last(u: Tensor) -> Tensor:
        return u.to(memory_format=torch.channels_last)

    def every_second(u: Tensor) -> Tensor:
        return torch.stack([u, u], dim=-1).flatten(-2)[..., ::2]

    for layout in (channels_last, every_second):

        def attend(p: Tensor, s: Tensor, u: Tensor, t: Tensor, layout: Function = layout) -> Tensor:
            return ours(device)(p, s, layout(u), t)

        assert_close(values_and_gradients(attend, tensors), expected, torch.float64)


@BOTH
def test_slots_may_be_shared_by_the_batch(ours, theirs, device):
    prototypes, slots, u, scale = _inputs(2, 5, 8, 3, 4)

    def shared(function: Function) -> Function:
        def attend(p: Tensor, s: Tensor, u: Tensor, t: Tensor) -> Tensor:
            return function(p.expand(2, -1, -1), s.expand(2, -1, -1), u, t)

        return attend

    tensors = [prototypes[:1], slots[:1], u, scale]
    assert_same(shared(ours(device)), shared(theirs()), tensors)


@BOTH
@pytest.mark.slow
def test_gradients_are_the_same_in_each_run(ours, theirs, device):
    tensors = _inputs(1, 5, 8, 6, 7, torch.float32)
    first, second = (values_and_gradients(ours(device), tensors) for _ in range(2))
    for once, again in zip(first, second, strict=True):
        assert torch.equal(once, again)


def test_the_scale_may_be_a_number(device):
    prototypes, slots, u, _ = (t.to(device) for t in _inputs(1, 5, 8, 3, 4))
    actual = kernels.disperse(prototypes, slots, u, 3.0)
    assert_close(actual, reference.glmix.dispatch(prototypes, slots, u, 3.0), torch.float64)


@pytest.mark.parametrize("shared", [False, True])
def test_the_operator_is_registered_as_pytorch_wants_it(shared, device):
    from convattn.ops.kernels.triton.cosine import attend_cosine

    prototypes, slots, u, scale = (
        t.to(device).requires_grad_() for t in _inputs(1, 5, 8, 3, 4, torch.float32)
    )
    pixels = u.detach().flatten(2).transpose(1, 2).requires_grad_()
    arguments = (slots, pixels, None, scale) if shared else (pixels, prototypes, slots, scale)
    torch.library.opcheck(
        attend_cosine,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@BOTH
@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(ours, theirs, dynamic, device):
    torch._dynamo.reset()
    compiled = torch.compile(ours(device), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for height, width in [(6, 9), (7, 5)]:
        tensors = _inputs(2, 5, 8, height, width, torch.float32)
        assert_same(compiled, ours(device), tensors)


def test_the_public_functions_take_the_kernel(device):
    prototypes, slots, u, scale = (t.to(device) for t in _inputs(2, 5, 8, 3, 4))
    assert_close(
        ops.soft_clustering(slots[:1], u, scale, backend="triton"),
        ops.soft_clustering(slots[:1], u, scale, backend="reference"),
        torch.float64,
    )
    with ops.use_backend("triton"):
        mixed = ops.dispatch(prototypes, slots, u, 3.0)
    expected = ops.dispatch(prototypes, slots, u, 3.0, backend="reference")
    assert_close(mixed, expected, torch.float64)
