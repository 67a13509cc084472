"""One short run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convattn.tasks.classification import TrainResult, train
from tests.tasks.classification.runs import silent, tiny, write_colors


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny models gain nothing from more, and lose on a busy machine


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A folder with images and a run of two epochs on them."""
    folder = tmp_path_factory.mktemp("finished")
    write_colors(folder)
    config = tiny(folder, name="run", ema=True, ema_decay=0.5, mixup=0.2, tensorboard=True)
    return folder, train(config, console=silent())
