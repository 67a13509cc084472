"""What every test shares: a fixed seed and a quiet, bounded machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("convattn", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("convattn")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
