from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import convattn

EXTRAS = (
    "lightning",
    "lightning_fabric",
    "matplotlib",
    "pydantic",
    "rich",
    "sklearn",
    "tensorboard",
    "torchmetrics",
)


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_version_is_one_plain_line():
    assert re.fullmatch(r"\d+\.\d+\.\d+", convattn.__version__)


def test_version_is_that_of_the_installed_package():
    assert version("convattn") == convattn.__version__


@pytest.mark.parametrize(
    "name",
    ["ACmix", "GLMix", "GLMixBlock", "XVolution", "create_model", "list_models", "load_official"],
)
def test_public_name_is_at_the_top(name):
    assert callable(getattr(convattn, name))


def test_import_brings_in_what_timm_does_and_this_package():
    ours = modules_after("import convattn")
    assert not ours & set(EXTRAS)
    more = {m for m in ours - modules_after("import timm") if not m.startswith("convattn")}
    assert len(more) < 20, sorted(more)


def test_import_registers_the_models_with_timm():
    assert "GLNet" in subprocess.run(
        [
            sys.executable,
            "-c",
            "import convattn, timm; print(type(timm.create_model('glnet_nano')).__name__)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
