"""Settings of all tests of segmentation."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny models gain nothing from more, and lose on a busy machine
