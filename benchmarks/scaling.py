"""Measure time and memory per pixel for images of growing size.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --device cuda

Every call has the same number of pixels: 64 images of 128 x 128, or one of 1,024 x 1,024.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Options, main
from benchmarks.networks import DEIT, SWIN
from convattn import GLMix
from convattn.bench.cases import Built, Case, Group
from convattn.bench.models import DTYPES, Setting, model_case

SIZES = (128, 256, 512, 1024)
OPERATOR = "GLMix operator"
NETWORKS = ("glnet_stl", "glnet_4g", SWIN, DEIT)
_CHANNELS, _STRIDE = 64, 4  # of the first stage of a GLNet-STL


def plan(options: Options) -> list[Group]:
    """Return a group for the operator and one for each network; the cases are the sizes."""
    sizes = (32, 64) if options.quick else SIZES
    networks = ("glnet_nano",) if options.quick else NETWORKS
    dtype = options.dtypes[0]
    return [
        _operator(options, dtype, sizes),
        *(_network(name, options, dtype, sizes) for name in networks),
    ]


def _operator(options: Options, dtype: str, sizes: Sequence[int]) -> Group:
    cases = [
        Case(
            name=f"{size} px",
            build=partial(_mixer, size, _images(size, sizes, options), options.device, dtype),
            images=_images(size, sizes, options),
            details={"size": size},
        )
        for size in sizes
    ]
    title = f"{OPERATOR}, {_CHANNELS} channels at stride {_STRIDE}, {dtype}"
    return Group(
        title, cases, options.device, dtype, _settings(OPERATOR, sizes), apart=options.apart
    )


def _mixer(size: int, images: int, device: str, dtype: str) -> Built:
    torch.manual_seed(0)
    mixer = GLMix(_CHANNELS).eval().to(device, DTYPES[dtype])
    mixer = mixer.to(memory_format=torch.channels_last)
    side = size // _STRIDE
    x = torch.randn(images, _CHANNELS, side, side, device=device, dtype=DTYPES[dtype])
    x = x.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.inference_mode():
            result: Tensor = mixer(x)
            return result

    return Built(call)


def _network(name: str, options: Options, dtype: str, sizes: Sequence[int]) -> Group:
    cases = []
    for size in sizes:
        setting = Setting(
            size=(size, size),
            batch=_images(size, sizes, options),
            device=options.device,
            dtype=dtype,
        )
        case = model_case(name, setting)
        details = {**case.details, "size": size}
        cases.append(Case(f"{size} px", case.build, case.images, case.macs, details))
    return Group(
        f"{name}, {dtype}",
        cases,
        options.device,
        dtype,
        _settings(name, sizes),
        weight=6.0,
        apart=options.apart,
    )


def _images(size: int, sizes: Sequence[int], options: Options) -> int:
    """Return the number of images of a size whose pixels are those of the largest image."""
    many = 8 if torch.device(options.device).type == "cuda" else 1
    return many * (max(sizes) // size) ** 2


def _settings(name: str, sizes: Sequence[int]) -> dict[str, object]:
    return {
        "of": name,
        "mode": "evaluation",
        "sizes": list(sizes),
        "form": "trained" if name == OPERATOR else "deployed",
        "layout": "channels-last",
    }


if __name__ == "__main__":
    sys.exit(main("scaling", about=__doc__ or "", plan=plan, budget=170))
