from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convattn.data import DataSource, open_dataset
from convattn.runs.weights import save_weights
from convattn.tasks.classification.build import build_model
from convattn.tasks.classification.config import TrainConfig
from tests.data.folders import write_classes
from tests.tasks.classification.runs import tiny

NAMES = ("Größe", "Grund", "klein")


def opened(folder: Path, form: Any, *names: str) -> DataSource:
    write_classes(folder, {unicodedata.normalize(form, name): 2 for name in names})
    return open_dataset(f"folder:{folder}", val_fraction=0.5)


def saved(folder: Path, source: DataSource, *class_names: str) -> tuple[TrainConfig, torch.Tensor]:
    """Save a model with these classes; return settings that start from it, and its head."""
    model, card, _ = build_model(tiny(folder), source)
    save_weights(
        model.state_dict(), replace(card, class_names=class_names), folder / "first.safetensors"
    )
    return tiny(folder, init=str(folder / "first.safetensors")), model.state_dict()["head.weight"]


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_the_head_is_kept_across_unicodes_forms(tmp_path: Path, forms: tuple[str, str]) -> None:
    source = opened(tmp_path / "a", forms[0], *NAMES)
    config, head = saved(tmp_path, source, *source.class_names)
    model, _, said = build_model(config, opened(tmp_path / "b", forms[1], *NAMES))
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert said == f"weights of {config.init}; its head is kept, as the 3 classes are the same"


def test_the_head_follows_the_order_of_the_classes(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b", "c")
    config, head = saved(tmp_path, source, "c", "a", "b")
    model, card, _ = build_model(config, source)
    assert card.class_names == ("a", "b", "c")
    assert torch.equal(model.state_dict()["head.weight"], head[[1, 2, 0]])


def test_why_the_head_is_not_kept_is_told(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "red", "blue", "\x1b[31m")
    config, _ = saved(tmp_path, source, "red", "blue", "green")
    said = build_model(config, source)[2]
    assert said is not None
    assert said.endswith(
        "its head is not kept: it has 3 classes, the data 3; only it has 'green'; only the data "
        r"has '\x1b[31m'"
    )
    assert build_model(tiny(tmp_path), source)[2] is None


DEEP, PLAIN = (0.0, 4095.0), None


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (
            DEEP,
            (0, 255),
            "with value_range 0 to 255 (8 bits), the weights were trained with value_range 0 to "
            "4095 (12 bits)",
        ),
        (PLAIN, DEEP, "with value_range 0 to 4095 (12 bits), the weights were trained without one"),
        (DEEP, PLAIN, "without one, the weights were trained with value_range 0 to 4095 (12 bits)"),
    ],
)
@pytest.mark.parametrize("names", [("a", "b"), ("a", "c")])
def test_weights_of_another_range_of_values_are_told(
    tmp_path: Path, before: Any, now: Any, told: str, names: tuple[str, str]
) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    config, _ = saved(tmp_path, replace(source, value_range=before), *names)
    said = build_model(config, replace(source, value_range=now))[2]
    assert said is not None
    assert said.endswith(f"; the data is read {told}")


@pytest.mark.parametrize("value_range", [DEEP, PLAIN])
def test_weights_of_the_same_range_are_not_told(tmp_path: Path, value_range: Any) -> None:
    source = replace(opened(tmp_path / "a", "NFC", "a", "b"), value_range=value_range)
    config, _ = saved(tmp_path, source, "a", "b")
    assert str(build_model(config, source)[2]).endswith("the 2 classes are the same")
