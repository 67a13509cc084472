from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from convattn import ops
from convattn.ops.kernels import triton as kernels


@pytest.mark.slow
def test_triton_programs_are_loaded_when_one_runs():
    code = (
        "import sys, convattn, convattn.ops.kernels\n"
        "modules = [x for x in sys.modules if x.startswith('convattn.ops.kernels.triton.')]\n"
        "print(modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_machine_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    u = torch.randn(1, 4, 3, 3)
    message = r"needs the package triton.*`convattn doctor` shows.*use backend='auto'"
    with pytest.raises(ValueError, match=message):
        ops.pixel_shift_attention(u, u, u, num_heads=1, backend="triton")


def test_tensors_on_the_cpu_are_refused():
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter takes them")
    u = torch.randn(1, 4, 3, 3)
    with pytest.raises(RuntimeError, match="needs tensors on a GPU, got cpu; TRITON_INTERPRET=1"):
        kernels.cluster(torch.randn(1, 2, 4), u, 1.0)
