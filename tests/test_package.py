from __future__ import annotations

import json
import re
import subprocess
import sys

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
