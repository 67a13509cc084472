from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

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


NAMES = (
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
)
EXTRA_NAMES = ("Predictor",)  # they need the extra "train", a star import does not
ROOMS = ("deploy", "layers", "models", "ops", "surgery")


def fresh(code: str) -> Any:
    """Run code in a new process and return what it prints, which must be JSON."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_version_is_one_plain_line():
    assert re.fullmatch(r"\d+\.\d+\.\d+", convattn.__version__)


def test_the_command_line_imports_the_standard_library_only():
    code = """
import json, sys
before = set(sys.modules)
sys.argv[0] = "/somewhere/bin/convattn"
import convattn
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    added = {name.partition(".")[0] for name in fresh(code)}
    assert added - set(sys.stdlib_module_names) == {"convattn"}


@pytest.mark.parametrize("change", ["sys.argv = []", "del sys.argv", "sys.argv[0] = 'convattn.py'"])
def test_other_programs_get_the_models(change):
    code = f"""
import json, sys
{change}
import convattn
print(json.dumps("convattn.models" in sys.modules))
"""
    assert fresh(code) is True


def test_import_works_where_torch_is_not_installed():
    code = """
import json, sys
sys.modules.update({"torch": None, "timm": None})
import convattn
from convattn import machine, requirements
try:
    convattn.ACmix
except ModuleNotFoundError as error:
    print(json.dumps([convattn.__version__, "ACmix" in dir(convattn), error.name]))
"""
    assert fresh(code) == [convattn.__version__, True, "torch"]


def test_a_name_of_an_extra_that_is_not_installed_says_how_to_install_it():
    code = """
import json, sys
sys.modules["pydantic"] = None
import convattn
try:
    convattn.Predictor
except ModuleNotFoundError as error:
    print(json.dumps([str(error), error.name]))
"""
    message = "convattn.Predictor needs pydantic: pip install 'convattn[train]'"
    assert fresh(code) == [message, "pydantic"]


def test_names_that_do_not_exist_raise_and_import_nothing():
    code = """
import json, sys
sys.argv[0] = "convattn"
import convattn
found = [hasattr(convattn, name) for name in ("acmix", "__path_hooks__", "cli")]
print(json.dumps([*found, "torch" in sys.modules]))
"""
    assert fresh(code) == [False, False, False, False]
    with pytest.raises(AttributeError, match="module 'convattn' has no attribute 'acmix'"):
        convattn.acmix  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_are_available_at_the_top():
    code = f"""
import json
import convattn
listed = dir(convattn)
found = [callable(getattr(convattn, name)) for name in {NAMES + EXTRA_NAMES}]
rooms = [getattr(convattn, name).__name__ for name in {ROOMS}]
print(json.dumps([all(found), rooms, sorted(set({NAMES + EXTRA_NAMES + ROOMS}) - set(listed))]))
"""
    assert fresh(code) == [True, [f"convattn.{name}" for name in ROOMS], []]


def test_star_import_gives_the_public_names():
    names = fresh("import json\nfrom convattn import *\nprint(json.dumps(sorted(dir())))")
    assert {name for name in names if not name.startswith("_")} == {*NAMES, "json"}


def test_type_checkers_see_the_names_that_exist():
    tree = ast.parse(Path(convattn.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    typed = next(node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    for name, home in homes.items():
        assert getattr(convattn, name) is getattr(importlib.import_module(str(home)), name), name
    assert sorted([*homes, "__version__"]) == sorted([*convattn.__all__, *EXTRA_NAMES])


def test_models_add_nothing_to_what_timm_imports():
    code = """
import json, sys
import timm
before = set(sys.modules)
import convattn.models
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
"""
    added, loaded = fresh(code)
    assert set(EXTRAS) & set(loaded) == set()
    others = [name for name in added if name.split(".")[0] != "convattn"]
    assert len(others) < 10, others


@pytest.mark.parametrize(
    "statements",
    [
        "import timm; import convattn",
        "import convattn; import timm",
        "from convattn import ACmix; import timm",
        *(
            pytest.param(statements, marks=pytest.mark.slow)
            for statements in (
                "import torch; import convattn; import timm",
                "import timm; from convattn.layers import ACmix",
                "import timm; import convattn.models",
                "import convattn; convattn.replace; import timm",
                "from convattn import models; import timm",
            )
        ),
    ],
)
def test_timm_builds_the_models(statements):
    build = "type(timm.create_model('glnet_nano', device='meta')).__name__"
    assert fresh(f"import json; {statements}; print(json.dumps({build}))") == "GLNet"


@pytest.mark.slow
def test_a_model_that_was_saved_whole_is_loaded_without_an_import(tmp_path):
    model = convattn.create_model("glnet_nano")
    torch.save(model, tmp_path / "model.pt")
    code = f"""
import json, torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
import timm
print(json.dumps([type(model).__name__, timm.is_model("acmix_resnet50")]))
"""
    assert fresh(code) == ["GLNet", True]


@pytest.mark.slow
def test_a_spawned_process_builds_a_model():
    code = """
import json, multiprocessing
import convattn
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        model = pool.apply(convattn.create_model, ("glnet_nano",), {"device": "meta"})
    print(json.dumps(type(model).__name__))
"""
    assert fresh(code) == "GLNet"


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
