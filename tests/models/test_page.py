"""The page of the models: complete, up to date, and without an unexplained difference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import convattn
from convattn.models import _page, models_page, paper_rows
from convattn.models._official import _wrappers
from convattn.models._page import Figures, Published

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.slow
def test_is_what_the_command_prints():
    assert PAGE.read_text(encoding="utf-8") == models_page()


@pytest.mark.slow
def test_every_figure_that_differs_is_explained_and_no_other():
    assert _page.unexplained() == []
    assert _page.explained_in_vain() == []


def test_every_model_is_there_once():
    families = list(sections().values())
    end = list(sections()).index("ACmix's ablations")
    names = [row[0].strip("`") for section in families[:end] for row in rows(section)]
    timms = {row.name for row in paper_rows()} - set(convattn.list_models())
    assert sorted(names) == sorted({*convattn.list_models(), *timms})


def test_models_stand_under_their_kind():
    found = sections()
    assert all("nano" in row[0] for row in rows(found["Nano models"]))
    assert all(row[0].endswith(("_conv`", "_attn`")) for row in rows(found["One path alone"]))
    baselines = [row[0].strip("`") for row in rows(found["Baselines"])]
    assert {"baseline_resnet26", "san19", "pvt_small", "conv_swin_tiny"} <= set(baselines)
    assert [row[0] for row in rows(found["ResNet-ACmix"])] == [
        f"`acmix_resnet{depth}`" for depth in (26, 38, 50)
    ]


def test_a_row_has_our_figures_and_the_papers():
    row = rows(sections()["ResNet-ACmix"])[0]
    assert row == [
        *("`acmix_resnet26`", "ResNet-ACmix-26", "10,487,816", "10,487,816", "10.6 M"),
        *("2.22 G", "2.3 G", "-3.6%", "76.1", "standard", "1, 2"),
    ]


def test_numbers_lead_to_entries_about_the_model():
    found = sections()
    lines = [line.split("|") for line in found["Figures that differ"].splitlines()]
    entries = {cells[1].strip(): cells[2] for cells in lines if len(cells) > 2}
    for heading in ("ResNet-ACmix", "Swin-ACmix", "GLNet", "Baselines"):
        for row in rows(found[heading]):
            for number in filter(None, row[-1].split(", ")):
                assert row[0] in entries[number]


@pytest.mark.parametrize(
    ("ours", "paper", "differing"),
    [
        (Figures(13_740_000, 2_340_000_000), Published("13.7", "2.3"), []),
        (Figures(13_760_000, 2_340_000_000), Published("13.7", "2.3"), ["parameters"]),
        (Figures(13_400_000, 2_360_000_000), Published("13", "2.3"), ["multiply-adds"]),
    ],
)
def test_a_figure_differs_where_it_does_not_round_to_the_papers(ours, paper, differing):
    assert list(_page._differing(ours, paper)) == differing


def test_a_model_of_no_heading_is_named():
    with pytest.raises(ValueError, match="resnet18 belongs under no heading"):
        _page._heading("resnet18")


def test_ablations_are_models_that_can_be_built():
    for row in _page.ablation_rows():
        change: dict[str, Any] = dict([row["change"].split("=")]) if row["change"] else {}
        convattn.create_model(row["name"], device="meta", **change)
    assert len(_page.ablation_rows()) == 10


def test_checkpoints_are_under_the_key_that_is_looked_at_first():
    for entry in _page._differences()["checkpoints"]:
        for name in entry["models"]:
            model = convattn.create_model(name, device="meta")
            assert entry["key"] in ("", _wrappers(model)[0])
