from __future__ import annotations

import subprocess
import sys

import pytest
import torch

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
    with pytest.raises(
        ModuleNotFoundError,
        match=r"needs the package triton.*'auto' takes another path; `convattn doctor`",
    ):
        kernels.attend_shifted(u, u, u, num_heads=1, kernel_size=3, distance=1, stride=1, scale=1.0)


def test_tensors_on_the_cpu_are_refused():
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter takes them")
    u = torch.randn(1, 4, 3, 3)
    with pytest.raises(RuntimeError, match="needs tensors on a GPU, got cpu; TRITON_INTERPRET=1"):
        kernels.cluster(torch.randn(1, 2, 4), u, 1.0)
