"""What every test shares: a fixed seed, one thread each."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("convattn", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("convattn")

# The tensors are small: a second thread only waits for the first. Tests run side by side instead,
# and so do the processes that some of them start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
