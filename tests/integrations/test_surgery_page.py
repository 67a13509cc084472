"""docs/surgery.md contains what its program measures, and its code runs unchanged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import convattn
from convattn.layers import ConvBeside
from examples import surgery

pytest.importorskip("ultralytics", exc_type=ImportError)
pytest.importorskip("segmentation_models_pytorch")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "surgery.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "examples" / "surgery.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def name_of(network: surgery.Network) -> str:
    return network.name.replace("`", "").replace(" ", "-")


@pytest.mark.parametrize("network", surgery.NETWORKS, ids=name_of)
def test_operators_go_into_well_known_networks(network):
    found = surgery.measure(network, size=(64, 96))
    assert set(found.difference.values()) == {0.0}
    assert min(found.replaced.values()) > 0
    assert surgery.row(network, found) in PAGE.splitlines()


@pytest.mark.parametrize("operator", surgery.OPERATORS)
def test_the_operator_of_a_kept_convolution_changes_the_output(operator):
    """With a factor other than zero the outputs differ, so a difference of zero is a result."""
    model = surgery.NETWORKS[0].build().eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        convattn.replace(model, operator, where=surgery.NETWORKS[0].where, keep=True)
        for module in model.modules():
            if isinstance(module, ConvBeside):
                module.gamma.fill_(1)
            elif isinstance(module, convattn.XVolution):
                norm: Any = module.attn_norm
                norm.weight.fill_(1)
        assert (model(x) - before).abs().max() > 1e-3


def test_the_page_contains_its_template():
    fixed = [line for line in TEMPLATE.splitlines() if "{{" not in line]
    missing = [line for line in fixed if line not in PAGE.splitlines()]
    assert missing == []
    assert "{{" not in PAGE
    assert len(re.findall(r"\| 0 / 0 / 0 \|", PAGE)) == len(surgery.NETWORKS) == 10


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_code_of_the_page_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"docs/surgery.md, snippet {number}", "exec"), {})
