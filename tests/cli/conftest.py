"""One short run, trained by the command line itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from convattn.cli import main
from tests.tasks.classification.runs import tiny, write_colors


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``colors/``, a recipe ``tiny.yaml`` and the finished run ``runs/run``."""
    folder = tmp_path_factory.mktemp("work")
    write_colors(folder)
    settings = tiny(folder).model_dump(mode="json", exclude={"name"})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--recipe", str(folder / "tiny.yaml"), "--name", "run"]) == 0
    return folder
