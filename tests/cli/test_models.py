from __future__ import annotations

import json

import pytest

from convattn.cli import main
from convattn.models import count_macs, count_parameters


def test_the_table_has_costs_and_the_papers_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "glnet_stl"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["model", "parameters", "mult-adds", "input", "top-1"]
    assert row.split()[:6] == ["glnet_stl", "30,296,786", "4.43", "G", "224x224", "82.5"]
    assert "2411.14429" in row


def test_json_has_the_exact_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "*nano", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == ["acmix_resnet_nano", "glnet_nano"]
    for entry in found:
        assert entry["parameters"] == count_parameters(entry["name"])
        assert entry["macs"] == count_macs(entry["name"])
        assert entry["input_size"] == [3, 32, 32]
        assert entry["paper"] is None


def test_a_part_of_a_name_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet_nano"]) == 0
    assert "acmix_resnet_nano" in capsys.readouterr().out


def test_a_pattern_without_a_match_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "glnett_nano"]) == 2
    assert "did you mean 'glnet_nano'?" in capsys.readouterr().err
