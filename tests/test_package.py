from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import convattn

HOME = Path(__file__).parents[1]
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


# A fresh interpreter: what timm imports, what this package adds, and what timm can then build.
_SCRIPT = """
import json, sys
import timm
before = set(sys.modules)
import convattn
added = sorted(set(sys.modules) - before)
kind = type(timm.create_model("glnet_nano", device="meta")).__name__
print(json.dumps([added, sorted(sys.modules), kind]))
"""


@pytest.fixture(scope="module")
def fresh() -> tuple[list[str], list[str], str]:
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    added, loaded, kind = json.loads(run.stdout)
    return added, loaded, kind


def test_version_is_one_plain_line():
    assert re.fullmatch(r"\d+\.\d+\.\d+", convattn.__version__)


@pytest.mark.parametrize(
    "name",
    [
        "ACmix",
        "ACmixConv2d",
        "GLMix",
        "GLMixBlock",
        "GLMixConv2d",
        "XVolution",
        "XVolutionConv2d",
        "create_model",
        "list_models",
        "load_official",
        "reparameterize",
        "replace",
    ],
)
def test_public_name_is_at_the_top(name):
    assert callable(getattr(convattn, name))


def test_import_adds_nothing_to_what_timm_imports(fresh):
    added, loaded, _ = fresh
    assert set(EXTRAS) & set(loaded) == set()
    others = [m for m in added if m.split(".")[0] != "convattn"]
    assert len(others) < 10, others


def test_import_registers_the_models_with_timm(fresh):
    assert fresh[2] == "GLNet"


def test_the_oldest_python_is_the_same_everywhere():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["mypy"]["python_version"] == oldest
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in (HOME / "Makefile").read_text()
    assert f"Python {oldest} or newer" in (HOME / "README.md").read_text()
    named = [line.rsplit(" ", 1)[1] for line in project["project"]["classifiers"] if "3." in line]
    assert named[0] == oldest


@pytest.mark.parametrize("folder", ["convattn", "benchmarks", "examples"])
def test_no_checkpoint_is_read_by_lightnings_own_loader(folder):
    # `load_from_checkpoint` builds what a file names: a checkpoint from elsewhere could run code.
    # `convattn.tasks.classification.load_checkpoint` reads tensors and the model card alone.
    naming = [
        str(path.relative_to(HOME))
        for path in sorted((HOME / folder).rglob("*.py"))
        if "load_from_checkpoint" in path.read_text(encoding="utf-8")
    ]
    assert naming == []
