"""Runs a chosen part of the tests again, as on lesser processors than this machine's.

``python -m tests.processors [PROFILE ...]``. Variables tell PyTorch and oneDNN to use fewer
instructions, and the compiler makes the kernels in C for a lesser processor; in the profile
"no-compiler" there is none.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# What may depend on the processor: operators, layers, and the smallest deployed models.
_MODELS = "tests/models/test_reparameterize.py::test_the_deployed_form"
TESTS = (
    "tests/ops",
    "tests/layers",
    "tests/deploy",
    "tests/models/test_contract.py::test_half_precision_keeps_dtype_and_value",
    f"{_MODELS}_is_close_in_half_precision",
    f"{_MODELS}_computes_the_same",
)
# Triton's interpreter and the making of the library do not.
LEFT_OUT = (
    "tests/ops/kernels/triton/test_cosine.py",
    "tests/ops/kernels/triton/test_neighbours.py",
    "tests/ops/kernels/native/test_library.py",
)


@dataclass(frozen=True)
class Profile:
    """What is taken away, and what PyTorch must then say that it has."""

    instructions: str  # torch.backends.cpu.get_cpu_capability()
    onednn: str  # ONEDNN_MAX_CPU_ISA
    march: str  # of the kernels in C

    def variables(self) -> dict[str, str]:
        """Return what imitates the processor in a process that starts."""
        return {
            "ATEN_CPU_CAPABILITY": self.instructions.lower(),
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "CC": f"gcc -march={self.march}",
        }


PROCESSORS = {
    "sse4": Profile("DEFAULT", "SSE41", "x86-64-v2"),
    "avx2": Profile("AVX2", "AVX2", "x86-64-v3"),
}
NO_COMPILER = "no-compiler"
_ASKED = """
import torch
from convattn.ops.kernels.native.library import available
print(torch.backends.cpu.get_cpu_capability(), available())
"""


def main(names: list[str]) -> int:
    """Run the profiles, all of them without names; return 1 if a test failed, else 0."""
    known = [NO_COMPILER]
    if platform.machine() in ("x86_64", "AMD64"):
        known = [*PROCESSORS, NO_COMPILER]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no profile {unknown[0]!r} on this machine; known: {', '.join(known)}")
        return 2
    return max([_run(name) for name in names or known])


def _run(name: str) -> int:
    with tempfile.TemporaryDirectory() as nothing:
        variables = {"PATH": nothing, "CC": ""}
        if name in PROCESSORS:
            variables = PROCESSORS[name].variables()
        environment = {**os.environ, **variables}
        answer = subprocess.run(
            [sys.executable, "-c", _ASKED], env=environment, capture_output=True, text=True
        )
        said = answer.stdout.strip()
        print(f"{name}: PyTorch uses {said.replace(' ', ', kernels in C: ')}", flush=True)
        if not _is_imitated(name, said):
            print(f"{name}: the variables did not take these abilities away\n{answer.stderr}")
            return 1
        start = time.monotonic()
        ignored = [f"--ignore={path}" for path in LEFT_OUT]
        words = ["-q", "-n", "auto", "--maxprocesses=8", "--dist=worksteal", "-m", "not slow"]
        words += [*ignored, *TESTS]
        words += ["-W", "ignore", "-r", "f"]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return int(run.returncode != 0)


def _is_imitated(name: str, said: str) -> bool:
    if name in PROCESSORS:
        return said.startswith(f"{PROCESSORS[name].instructions} ")
    return said.endswith(" False")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
