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


def _sliding(device: str, heads: int, window: int, stride: int = 1, dilation: int = 1) -> Function:
    def attend(*maps: Tensor) -> Tensor:
        q, k, v = (x.to(device) for x in maps)
        return kernels.attend_sliding(
            q[:, :, ::stride, ::stride], k, v, num_heads=heads, window_size=window, stride=stride,
            dilation=dilation, scale=None,
        ).cpu()  # fmt: skip

    return attend


def _sliding_reference(heads: int, window: int, stride: int = 1, dilation: int = 1) -> Function:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q[:, :, ::stride, ::stride]
        return reference.attention.sliding_window_attention(
            q, k, v, num_heads=heads, window_size=window, stride=stride, dilation=dilation,
            scale=None, position=None,
        )  # fmt: skip

    return attend


def _shift(device: str, heads: int, window: int, stride: int = 1, distance: int = 1) -> Function:
    def attend(*maps: Tensor) -> Tensor:
        q, k, v = (x.to(device) for x in maps)
        return kernels.attend_shifted(
            q, k, v, num_heads=heads, kernel_size=window, stride=stride, distance=distance,
            scale=0.1,
        ).cpu()  # fmt: skip

    return attend


def _shift_reference(heads: int, window: int, stride: int = 1, distance: int = 1) -> Function:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.xvolution.pixel_shift_attention(
            q, k, v, num_heads=heads, kernel_size=window, stride=stride, distance=distance,
            scale=0.1,
        )  # fmt: skip

    return attend


BOTH = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(_sliding, _sliding_reference), (_shift, _shift_reference)],
    ids=["sliding", "shift"],
)


HALVES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)


def _maps(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3)]


# heads, window, stride, dilation; a reflection may be longer than the map
QUICK = [
    ((1, 2, 4, 9), (1, 3, 1, 1)),
    ((1, 3, 1, 4), (1, 3, 1, 2)),
    ((1, 2, 7, 9), (1, 3, 2, 1)),
]
SLOW = [
    ((1, 3, 5, 2), (1, 5, 1, 1)),
    ((2, 4, 6, 9), (2, 3, 1, 1)),
    ((1, 4, 1, 7), (2, 5, 1, 2)),
    ((1, 2, 9, 6), (1, 3, 2, 3)),
    ((1, 8, 7, 7), (2, 7, 1, 1)),
    ((1, 4, 1, 1), (1, 3, 1, 1)),
    ((1, 4, 2, 3), (1, 7, 1, 2)),
    ((1, 4, 11, 13), (1, 5, 3, 2)),
    ((1, 2, 9, 17), (1, 3, 4, 2)),
    ((1, 2, 5, 9), (1, 3, 6, 4)),
    ((1, 40, 9, 10), (1, 7, 1, 1)),
    ((1, 2, 20, 4), (1, 1, 1, 1)),
    ((1, 128, 4, 6), (1, 15, 1, 1)),  # a window wider than a block
]


@BOTH
@pytest.mark.parametrize(
    ("shape", "options"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_matches_the_reference(ours, theirs, shape, options, device):
    assert_same(ours(device, *options), theirs(*options), _maps(shape))


@BOTH
def test_matches_the_reference_in_single_precision(ours, theirs, device):
    assert_same(ours(device, 2, 3), theirs(2, 3), _maps((1, 34, 5, 4), torch.float32))


@BOTH
def test_no_image_gives_no_image(ours, theirs, device):
    maps = [x[:0] for x in _maps((1, 4, 3, 2))]
    assert [x.shape for x in values_and_gradients(ours(device, 2, 3), maps)] == 4 * [(0, 4, 3, 2)]


@BOTH
@HALVES
def test_half_precision_follows_float32(ours, theirs, dtype, device):
    maps = _maps((1, 8, 5, 6), dtype)
    halves = values_and_gradients(ours(device, 2, 3), maps)
    singles = values_and_gradients(theirs(2, 3), [x.float() for x in maps])
    for half, single in zip(halves, singles, strict=True):
        assert half.dtype == dtype
        assert_close(half.float(), single, dtype)


@BOTH
@pytest.mark.slow
@HALVES
def test_half_precision_bears_large_values(ours, theirs, dtype, device):
    maps = [10 * x for x in _maps((1, 8, 5, 4), dtype)]
    assert all(x.isfinite().all() for x in values_and_gradients(ours(device, 2, 3), maps))


@BOTH
def test_memory_layout_does_not_matter(ours, theirs, device):
    maps = _maps((1, 4, 2, 3))
    expected = values_and_gradients(theirs(2, 3, 2), maps)

    def channels_last(x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last)

    def every_second(x: Tensor) -> Tensor:
        return torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]

    for layout in (channels_last, every_second):

        def attend(*maps: Tensor, layout: Function = layout) -> Tensor:
            return ours(device, 2, 3, 2)(*map(layout, maps))

        assert_close(values_and_gradients(attend, maps), expected, torch.float64)


def test_the_answer_is_laid_out_as_the_queries_are(device):
    maps = [x.to(memory_format=torch.channels_last) for x in _maps((2, 4, 5, 6))]
    out = _sliding(device, 2, 3)(*maps)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_that_is_expanded_is_read(device):
    maps = [x.requires_grad_() for x in _maps((1, 4, 2, 3))]
    ours = torch.autograd.grad(_sliding(device, 2, 3)(*maps).sum(), maps)
    theirs = torch.autograd.grad(_sliding_reference(2, 3)(*maps).sum(), maps)
    assert_close(ours, theirs, torch.float64)


@pytest.mark.slow
def test_gradients_are_the_same_in_each_run(device):
    maps = _maps((1, 2, 9, 3), torch.float32)
    first, second = (values_and_gradients(_sliding(device, 1, 3), maps) for _ in range(2))
    for once, again in zip(first, second, strict=True):
        assert torch.equal(once, again)


def test_autocast_gives_its_type(device):
    maps = [x.to(device) for x in _maps((1, 4, 5, 5), torch.float32)]
    with torch.autocast(device, dtype=torch.bfloat16):
        out = _sliding(device, 2, 3)(*maps)
    assert out.dtype == torch.bfloat16
    expected = _sliding_reference(2, 3)(*(x.cpu() for x in maps))
    assert_close(out.float(), expected, torch.bfloat16)


@BOTH
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_operator_is_registered_as_pytorch_wants_it(ours, theirs, stride, device):
    from convattn.ops.kernels.triton.neighbours import attend_neighbours

    maps = [x.to(device).requires_grad_() for x in _maps((1, 4, 4, 5), torch.float32)]
    last = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in maps]
    for q, k, v in (maps, last):
        arguments = (q[:, :, ::stride, ::stride], k, v, 2, 3, stride, 1, 0.5, ours is _sliding)
        torch.library.opcheck(
            attend_neighbours,
            arguments,
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@BOTH
def test_compiles_whole(ours, theirs, dynamic, device):
    torch._dynamo.reset()
    compiled = torch.compile(
        ours(device, 2, 3), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for shape in [(2, 4, 3, 5), (2, 4, 4, 3)]:
        assert_same(compiled, ours(device, 2, 3), _maps(shape, torch.float32))


@pytest.mark.slow
def test_exports(device):
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attend_sliding(
                q, k, v, num_heads=2, window_size=3, stride=1, dilation=1, scale=None
            )

    maps = tuple(x.to(device) for x in _maps((1, 4, 5, 5), torch.float32))
    program = torch.export.export(Attention(), maps)
    assert_close(program.module()(*maps), Attention()(*maps), torch.float32)


def test_runs_on_the_meta_device(device):
    q, k = (torch.empty(2, 4, *size, device="meta") for size in ((3, 4), (5, 7)))
    out = kernels.attend_sliding(
        q, k, k, num_heads=2, window_size=3, stride=2, dilation=1, scale=None
    )
    assert out.is_meta
    assert out.shape == (2, 4, 3, 4)


def test_a_head_too_wide_is_refused(device):
    q = torch.randn(1, 257, 2, 2, device=device)
    with pytest.raises(ValueError, match=r"heads of at most 256 channels .* got 257"):
        _shift(device, 1, 3)(q, q, q)


def test_the_public_function_takes_the_kernel(device):
    q, k, v = (x.to(device) for x in _maps((1, 4, 3, 4)))
    options = {"num_heads": 2, "kernel_size": 3, "stride": 2}
    expected = ops.pixel_shift_attention(q, k, v, backend="reference", **options)
    assert_close(
        ops.pixel_shift_attention(q, k, v, backend="triton", **options), expected, torch.float64
    )


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("shape", "window", "stride", "dilation"),
    [((1, 4, 5, 4), 3, 2, 1), pytest.param((2, 4, 7, 11), 5, 3, 2, marks=pytest.mark.slow)],
)
def test_queries_are_a_map_or_the_answered_ones_alone(
    alone, shape, window, stride, dilation, device
):
    def attend(backend: str) -> Function:
        def on(*maps: Tensor) -> Tensor:
            q, k, v = (x.to(device) for x in maps)
            return ops.sliding_window_attention(
                q, k, v, num_heads=2, window_size=window, stride=stride, dilation=dilation,
                backend=backend,
            ).cpu()  # fmt: skip

        return on

    q, k, v = _maps(shape)
    q = q[:, :, ::stride, ::stride].contiguous() if alone else q
    assert_same(attend("triton"), attend("reference"), [q, k, v])


def test_the_public_sliding_window_takes_the_kernel_with_positions(device):
    q, k, v = (x.to(device) for x in _maps((1, 4, 3, 4)))
    position = torch.randn(1, 2, 3, 4, dtype=torch.float64).to(device)
    actual, expected = (
        ops.sliding_window_attention(
            q, k, v, num_heads=2, window_size=3, position=position, backend=backend
        )
        for backend in ("triton", "reference")
    )
    assert_close(actual, expected, torch.float64)
