"""Measure every path of the operators, and the reference.

python -m benchmarks.ops
python -m benchmarks.ops --device cuda

On a GPU the sliding window is also measured with PyTorch's FlexAttention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Options, main
from benchmarks.flex import sliding_window_flex
from convattn import ops
from convattn.bench.cases import Built, Case, Group
from convattn.bench.models import DTYPES
from convattn.ops.acmix import convolution as acmix
from convattn.ops.glmix import slots as glmix
from convattn.ops.sliding.attention import SLIDING
from convattn.ops.xvolution.pixel_shift import PIXEL_SHIFT

HEADS, WINDOW, SLOTS = 4, 7, (8, 8)
# Channels and size of the four stages of a ResNet or a GLNet-STL, for images of 224 x 224.
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
_LATER_STAGES = ((64, 56), (256, 14))
_QUICK = ((8, 9),)

Operator = Callable[..., Tensor]  # (*inputs, backend=) -> Tensor


def plan(options: Options) -> list[Group]:
    """Return a group for each operator, shape, mode (forward or with backward) and data type."""
    makers = (_sliding, _clustering, _pixel_shift, _convolution_path)
    return [
        group
        for dtype in options.dtypes
        for backward in (False, True)
        for make in makers
        for group in make(options, dtype, backward)
    ]


def _sliding(options: Options, dtype: str, backward: bool) -> list[Group]:
    groups = []
    for stride in (1, 2):
        for channels, size in _QUICK if options.quick else STAGES:
            shape = (options.batch, channels, size, size)
            position = (1, channels // HEADS, size, size)
            outputs = -(-size // stride)
            groups.append(
                _group(
                    options,
                    "sliding window",
                    [shape, shape, shape, position],
                    _slide,
                    SLIDING.backends,
                    macs=2 * options.batch * channels * WINDOW**2 * outputs**2,
                    dtype=dtype,
                    backward=backward,
                    stride=stride,
                )
            )
    return groups


def _slide(q: Tensor, k: Tensor, v: Tensor, p: Tensor, **rest: Any) -> Tensor:
    return ops.sliding_window_attention(
        q, k, v, num_heads=HEADS, window_size=WINDOW, position=p, **rest
    )


def _clustering(options: Options, dtype: str, backward: bool) -> list[Group]:
    paths = (glmix.DISPATCH if backward else glmix.CLUSTER_AND_DISPATCH).backends
    number = SLOTS[0] * SLOTS[1]

    return [
        _group(
            options,
            "GLMix clustering and dispatching",
            [(options.batch, channels, size, size), (1,)],
            _cluster,
            paths,
            # Both steps have the same similarities. Without gradients they are computed once: three
            # products. With gradients they are computed twice: four products.
            macs=(4 if backward else 3) * options.batch * channels * number * size**2,
            dtype=dtype,
            backward=backward,
        )
        for channels, size in (_QUICK if options.quick else STAGES)
    ]


def _cluster(u: Tensor, scale: Tensor, backend: str) -> Tensor:
    slots = ops.pool_slots(u, SLOTS)
    return ops.cluster_and_dispatch(slots, u, scale, _unchanged, backend=backend)


def _unchanged(slots: Tensor) -> Tensor:
    return slots


def _pixel_shift(options: Options, dtype: str, backward: bool) -> list[Group]:
    return [
        _group(
            options,
            "pixel shift attention",
            [(options.batch, channels, size, size)] * 3,
            partial(ops.pixel_shift_attention, num_heads=HEADS),
            PIXEL_SHIFT.backends,
            macs=2 * options.batch * channels * 9 * size**2,
            dtype=dtype,
            backward=backward,
        )
        for channels, size in (_QUICK if options.quick else _LATER_STAGES)
    ]


def _convolution_path(options: Options, dtype: str, backward: bool) -> list[Group]:
    groups = []
    for channels, size in _QUICK if options.quick else _LATER_STAGES:
        shape = (options.batch, channels, size, size)
        groups.append(
            _group(
                options,
                "ACmix convolution path",
                [shape, shape, shape, (9, 3 * HEADS), (channels, 9, 3, 3)],
                partial(ops.acmix_convolution, head_dim=channels // HEADS),
                acmix.ACMIX_CONVOLUTION.backends,
                # Folded: 9 products with each of the groups, for every output and pixel.
                macs=options.batch * channels * 9 * 3 * HEADS * size**2,
                dtype=dtype,
                backward=backward,
            )
        )
    return groups


def _group(
    options: Options,
    name: str,
    shapes: Sequence[tuple[int, ...]],
    call: Operator,
    backends: Sequence[str],
    *,
    macs: int,
    dtype: str,
    backward: bool,
    stride: int = 0,
) -> Group:
    gpu = torch.device(options.device).type == "cuda"
    extra: dict[str, Any] = {"stride": stride} if stride else {}
    batch, channels, size = shapes[0][0], shapes[0][1], shapes[0][2]
    mode = "forward + backward" if backward else "forward"
    paths = ["reference", "auto", *(b for b in backends if b != "reference")]
    paths = [path for path in paths if gpu or path != "triton"]

    build = partial(_build, call, shapes, options.device, dtype, backward, stride)
    if gpu and stride:
        paths.append("flex")
    title = f"{name} ({channels}, {size}x{size})" + (f", stride {stride}" if stride else "")
    work = macs * (3 if backward else 1)
    return Group(
        name=f"{title}, {mode}, {dtype}",
        cases=[Case(p, partial(build, path=p), images=batch, macs=work) for p in paths],
        device=options.device,
        dtype=dtype,
        settings={
            "operator": name,
            "mode": mode,
            "batch": batch,
            "channels": channels,
            "size": [size, size],
            **extra,
            "layout": "channels-last",
        },
        weight=float(batch * channels * size**2) * (3 if backward else 1) + 2e5 * batch,
        apart=options.apart,
    )


def _build(
    call: Operator,
    shapes: Sequence[tuple[int, ...]],
    device: str,
    dtype: str,
    backward: bool,
    stride: int,
    path: str,
) -> Built:
    extra = {"stride": stride} if stride else {}
    operator: Operator = partial(call, backend=path, **extra)
    if path == "flex":
        operator = sliding_window_flex(
            size=shapes[0][2], num_heads=HEADS, window_size=WINDOW, stride=stride, device=device
        )
    return _ready(operator, shapes, device, dtype, backward)


def _ready(
    operator: Operator,
    shapes: Sequence[tuple[int, ...]],
    device: str,
    dtype: str,
    backward: bool,
) -> Built:
    torch.manual_seed(0)
    tensors = [torch.randn(shape, device=device, dtype=DTYPES[dtype]) for shape in shapes]
    tensors = [
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors
    ]
    if not backward:

        def forward() -> Tensor:
            with torch.inference_mode():
                return operator(*tensors)

        return Built(forward)
    for tensor in tensors:
        tensor.requires_grad_()
    gradient = torch.randn_like(operator(*tensors))

    def both() -> tuple[Tensor, ...]:
        result = operator(*tensors)
        return result.detach(), *torch.autograd.grad(result, tensors, gradient)

    return Built(both)


if __name__ == "__main__":
    sys.exit(main("ops", about=__doc__ or "", plan=plan, budget=200))
