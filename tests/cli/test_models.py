from __future__ import annotations

import json

import pytest

from convattn import models
from convattn.cli import main
from convattn.models import count_macs, count_parameters, list_models


def test_the_table_has_costs_and_the_accuracy_of_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "glnet_stl"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["model", "parameters", "mult-adds", "input", "top-1"]
    assert row.split()[:6] == ["glnet_stl", "30,296,786", "4.43", "G", "224x224", "82.5"]
    assert "2411.14429" in row


def test_json_has_the_exact_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "*net_nano", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = ("acmix_resnet", "baseline_resnet", "glnet", "xvolution_resnet")
    assert [entry["name"] for entry in found] == [f"{kind}_nano" for kind in kinds]
    for entry in found:
        assert entry["parameters"] == count_parameters(entry["name"])
        assert entry["macs"] == count_macs(entry["name"])
        assert entry["input_size"] == [3, 32, 32]
        assert entry["paper"] is None


def test_a_part_of_a_name_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet_nano"]) == 0
    assert "acmix_resnet_nano" in capsys.readouterr().out


def test_several_models_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "glnet_nano", "pvt_nano", "glnet_n?no"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["glnet_nano", "pvt_nano"]


def test_a_pattern_without_a_match_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "glnett_nano"]) == 2
    assert "did you mean 'glnet_nano'?" in capsys.readouterr().err


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the glnet_nano models, which are counted quickly."""
    monkeypatch.setattr(models, "list_models", lambda pattern="glnet_nano*": list_models(pattern))


@pytest.mark.usefixtures("few")
def test_variants_with_one_path_are_listed_with_all_or_a_pattern(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["glnet_nano"]
    assert lines[-1] == "and 2 with only one path: convattn models --all"
    for words in (["--all"], ["glnet_nano*"]):
        assert main(["models", *words]) == 0
        names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
        assert names == ["glnet_nano", "glnet_nano_attn", "glnet_nano_conv"]


def test_a_model_of_a_paper_without_its_accuracy_has_a_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "xvolution_resnet34"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("not in the paper")
