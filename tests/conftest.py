"""What every test shares: a fixed seed, one thread each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("convattn", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("convattn")

# The tensors are small: a second thread only waits for the first. Tests run side by side instead,
# and so do the processes that some of them start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# PyTorch's cache of compiled code does not say for which instructions it was compiled: code for
# more than the processor has, or is told to use, gives wrong numbers.
_INSTRUCTIONS = torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"convattn-code-{_INSTRUCTIONS}")
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
