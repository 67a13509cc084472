"""Every program goes through Triton's compiler for GPUs, which needs no GPU: the interpreter
bears much that they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    GPUTarget,
)

from convattn.ops.kernels.triton import cosine, neighbours

SHARED_MEMORY = 99 * 1024  # of a block on the smallest of the cards since Ampere
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


class Compiler:
    """Stands in for a program: compiles what is launched, as a launch would, and runs nothing."""

    def __init__(self, program: Any, capability: int) -> None:
        self.program, self.capability = program, capability
        self.binaries: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(n >= 1 for n in grid)
        return self.compile

    def compile(
        self, *args: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any
    ) -> None:
        names = self.program.arg_names
        values = dict(zip(names, args, strict=False)) | constants
        assert set(values) == set(names)
        signature, attributes = {}, {}
        for place, parameter in enumerate(self.program.params):
            value = values[parameter.name]
            if isinstance(value, Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = parameter.annotation_type or "i32"
                if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                    attributes[(place,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.program, signature, constants, attributes)
        target = GPUTarget("cuda", self.capability, 32)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        self.binaries.append(triton.compile(source, target=target, options=options))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def _compilers(monkeypatch: Any, module: Any, capability: int) -> list[Compiler]:
    """Put a compiler in the place of each program of a module."""
    compilers = []
    for name, program in vars(module.programs).items():
        if isinstance(program, triton.runtime.JITFunction) and name[0] != "_" and name != "dot":
            compilers.append(Compiler(program, capability))
            monkeypatch.setattr(module.programs, name, compilers[-1])
    return compilers


def _check(compilers: list[Compiler]) -> None:
    for compiler in compilers:
        (binary,) = compiler.binaries
        assert f".target sm_{compiler.capability}" in binary.asm["ptx"]
        assert binary.metadata.shared <= SHARED_MEMORY


# Compute capability, type, channels: few and masked, or so many that shared memory is full.
CASES = [
    (80, torch.bfloat16, 32),
    (80, torch.bfloat16, 3),
    (80, torch.bfloat16, 256),
    (80, torch.float16, 64),
    (80, torch.float32, 256),
    (80, torch.float64, 128),
    (90, torch.bfloat16, 64),
    (90, torch.float32, 128),
]
LIKE_THE_OTHER = [(80, torch.bfloat16, 32), (90, torch.float16, 256)]  # but for a flag

pytestmark = pytest.mark.slow


def _attend(q: Tensor, window: int, stride: int, dilation: int, softmax: bool) -> None:
    k, q = q, q[:, :, ::stride, ::stride]
    out, lse = neighbours.attend_neighbours(q, k, k, 1, window, stride, dilation, 0.1, softmax)
    neighbours.attend_neighbours_backward(
        out, q, k, k, out, lse, window, stride, dilation, 0.1, softmax
    )


@pytest.mark.parametrize(
    ("softmax", "capability", "dtype", "channels"),
    [*((True, *case) for case in CASES), *((False, *case) for case in LIKE_THE_OTHER)],
)
def test_attention_to_neighbours_compiles(softmax, capability, dtype, channels, monkeypatch):
    compilers = _compilers(monkeypatch, neighbours, capability)
    assert len(compilers) == 3
    q = torch.empty(2, channels, 14, 17, dtype=dtype).to(memory_format=torch.channels_last)
    _attend(q, 7 if softmax else 3, 1, 1, softmax)
    _check(compilers)


@pytest.mark.parametrize(("window", "stride", "dilation"), [(7, 2, 1), (3, 3, 2), (13, 1, 1)])
def test_other_windows_compile(window, stride, dilation, monkeypatch):
    compilers = _compilers(monkeypatch, neighbours, 80)
    _attend(torch.empty(1, 32, 9, 9, dtype=torch.float16), window, stride, dilation, True)
    _check(compilers)


@pytest.mark.parametrize(
    ("shared", "capability", "dtype", "channels"),
    [*((False, *case) for case in CASES), *((True, *case) for case in LIKE_THE_OTHER)],
)
def test_attention_by_cosine_compiles(shared, capability, dtype, channels, monkeypatch):
    compilers = _compilers(monkeypatch, cosine, capability)
    assert len(compilers) == 4
    pixels = torch.empty(2, 640, channels, dtype=dtype)
    slots = torch.empty(2, 49, channels, dtype=dtype)
    scale = torch.ones(1, dtype=torch.promote_types(dtype, torch.float32))
    tensors = (slots, pixels, None) if shared else (pixels, slots, slots)
    out, lse = cosine.attend_cosine(*tensors, scale)
    cosine.attend_cosine_backward(out, *tensors, scale, out, lse)
    _check(compilers)
