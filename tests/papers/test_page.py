"""The page docs/models.md is complete and up to date, and explains every difference."""

from __future__ import annotations

import re
from typing import Any

import pytest

import convattn
from convattn.models import paper_rows
from papers.page import (
    PAGE,
    Figures,
    Published,
    ablation_rows,
    differences,
    differing_figures,
    explained_in_vain,
    heading_of,
    main,
    unexplained,
)


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_figure_that_differs_is_explained_and_no_other():
    assert unexplained() == []
    assert explained_in_vain() == []


def test_every_model_is_there_once():
    families = list(sections().values())
    end = list(sections()).index("ACmix's ablations")
    names = [row[0].strip("`") for section in families[:end] for row in rows(section)]
    timms = {row.name for row in paper_rows()} - set(convattn.list_models())
    assert sorted(names) == sorted({*convattn.list_models(), *timms})


def test_models_are_listed_under_their_family():
    found = sections()
    assert all("nano" in row[0] for row in rows(found["Nano models"]))
    assert all(row[0].endswith(("_conv`", "_attn`")) for row in rows(found["Single paths"]))
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


def test_numbers_lead_to_entries_of_the_model():
    found = sections()
    lines = [line.split("|") for line in found["Figures that differ"].splitlines()]
    entries = {cells[1].strip(): cells[2] for cells in lines if len(cells) > 2}
    for section in ("ResNet-ACmix", "Swin-ACmix", "GLNet", "Baselines"):
        for row in rows(found[section]):
            for number in filter(None, row[-1].split(", ")):
                assert row[0] in entries[number]


@pytest.mark.parametrize(
    ("ours", "paper", "expected"),
    [
        (Figures(13_740_000, 2_340_000_000), Published("13.7", "2.3"), []),
        (Figures(13_760_000, 2_340_000_000), Published("13.7", "2.3"), ["parameters"]),
        (Figures(13_400_000, 2_360_000_000), Published("13", "2.3"), ["multiply-adds"]),
    ],
)
def test_a_figure_differs_where_it_does_not_round_to_the_papers(ours, paper, expected):
    assert list(differing_figures(ours, paper)) == expected


def test_a_model_of_no_heading_is_named():
    with pytest.raises(ValueError, match="no heading of the page matches resnet18"):
        heading_of("resnet18")


def test_ablations_are_models_that_can_be_built():
    for row in ablation_rows():
        change: dict[str, Any] = dict([row["change"].split("=")]) if row["change"] else {}
        convattn.create_model(row["name"], device="meta", **change)
    assert len(ablation_rows()) == 10


def test_weights_are_read_first_under_the_key_of_the_published_file():
    file = {key: {"epoch": 3} for key in ("state_dict", "model", "model_ema", "state_dict_ema")}
    for entry in differences()["checkpoints"]:
        for name in entry["models"]:
            model = convattn.create_model(name, device="meta")
            if entry["key"]:
                with pytest.raises(ValueError, match=f"holds no weights under '{entry['key']}'"):
                    convattn.load_official(model, file)
