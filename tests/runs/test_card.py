from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import replace
from typing import Any

import pytest

from convattn.data import Preprocess
from convattn.runs.card import ModelCard

CARD = ModelCard(
    model="test_vit",
    model_args={"img_size": 32},
    class_names=("Katze 猫", "dog"),
    preprocess=Preprocess(input_size=(1, 32, 32), mean=(0.5,), std=(0.2,), crop_pct=0.9),
    value_range=(0.0, 4095.0),
    data="folder:pets",
    data_options={"val_fraction": 0.3},
    epoch=4,
    metrics={"val_top1": 0.5},
    method="linear",
    kernels="C, ABI 3",
)


def changed(**values: Any) -> str:
    """Return the card's text with other values; None removes a key."""
    found = {**json.loads(CARD.to_json()), **values}
    return json.dumps({key: value for key, value in found.items() if value is not None})


def test_a_card_survives_its_text() -> None:
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert json.loads(CARD.to_json())["format"] == "convattn-2"
    assert "猫" in CARD.to_json()


def test_the_lengths_of_the_sides_survive_the_text() -> None:
    sided = replace(CARD.preprocess, short_side=480, long_side=800)
    card = replace(CARD, preprocess=sided)
    assert ModelCard.from_json(card.to_json()) == card
    assert "short_side" not in CARD.to_json()  # earlier versions read the card
    nulls = {**CARD.preprocess.to_dict(), "short_side": None}
    assert ModelCard.from_json(changed(preprocess=nulls)) == CARD


def test_names_that_are_not_utf8_survive() -> None:
    card = replace(CARD, class_names=("a", os.fsdecode(b"ros\xe9")))
    card.to_json().encode()
    assert ModelCard.from_json(card.to_json()) == card


def test_a_card_of_the_first_format_is_read() -> None:
    first = changed(
        format="convattn-classification-1", task=None, method=None, kernels=None, unknown=None
    )
    assert ModelCard.from_json(first) == replace(CARD, method="", kernels="")


def test_keys_of_a_later_version_are_kept_and_written_back() -> None:
    card = ModelCard.from_json(changed(anchors=[1, 2]))
    assert card.unknown == {"anchors": [1, 2]}
    assert json.loads(card.to_json())["anchors"] == [1, 2]
    assert ModelCard.from_json(card.to_json()) == card


def test_an_older_cards_names_are_read_in_one_form() -> None:
    card = replace(CARD, class_names=("Größe", "klein"))
    older = card.to_json().replace("Größe", unicodedata.normalize("NFD", "Größe"))
    assert older != card.to_json()
    assert ModelCard.from_json(older) == card


@pytest.mark.parametrize("key", ["model", "model_args", "class_names", "preprocess"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=rf"the model card of runs/a\.ckpt has no '{key}'"):
        ModelCard.from_json(changed(**{key: None}), "runs/a.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 3),
        ("model_args", []),
        ("class_names", "cat"),
        ("class_names", [1, 2]),
        ("class_names", []),
        ("preprocess", "bicubic"),
        ("value_range", [3, 2]),
        ("value_range", ["a", "b"]),
        ("value_range", 7),
        ("data_options", 1),
        ("epoch", "4"),
        ("epoch", -1),
        ("epoch", True),
        ("metrics", {"val_top1": "high"}),
        ("version", 1),
        ("task", ["classification"]),
        ("kernels", {}),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"the model card of best\.safetensors .*'{key}'"):
        ModelCard.from_json(changed(**{key: value}), "best.safetensors")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "has no 'input_size' in 'preprocess'"),
        (
            {"input_size": [3, 32], "mean": [0], "std": [1]},
            r"'preprocess\.input_size', got \[3, 32",
        ),
        ({"input_size": [2, 32, 32], "mean": [0], "std": [1]}, "1 or 3 channels"),
        ({"input_size": [3, 32, 32], "mean": 0, "std": [1]}, r"'preprocess\.mean', got 0"),
        (
            {"input_size": [3, 32, 32], "mean": [0], "std": [1], "gamma": 2},
            "'gamma' in 'preprocess'",
        ),
    ],
)
def test_a_wrong_preprocess_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"the model card of a .*{named}"):
        ModelCard.from_json(changed(preprocess=values), "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [0, 0, 0]),
        ("std", [0.5, -1, 0.5]),
        ("mean", [float("nan")]),
        ("crop_pct", -1),
        ("crop_pct", 0),
        ("crop_pct", float("inf")),
        ("input_size", [3, 0, 0]),
        ("interpolation", "bicubical"),
        ("crop_mode", "middle"),
        ("short_side", 0),
        ("short_side", 480.0),
        ("long_side", True),
    ],
)
def test_a_preprocess_that_no_image_survives_is_named(key: str, value: Any) -> None:
    values = {**CARD.preprocess.to_dict(), key: value}
    with pytest.raises(ValueError, match=rf"the model card of a .*'preprocess\.{key}', got"):
        ModelCard.from_json(changed(preprocess=values), "a")


def test_a_later_format_asks_for_an_update() -> None:
    text = changed(format="convattn-3", version="9.1")
    with pytest.raises(ValueError, match=r"of a has the format 'convattn-3', .* 9\.1.*: update"):
        ModelCard.from_json(text, "a")


@pytest.mark.parametrize("text", ["", "[1]", '{"format": "other"}', '{"format": [1]}', "[" * 9999])
def test_a_text_that_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the model card of a\.safetensors "):
        ModelCard.from_json(text, "a.safetensors")


def test_a_message_shows_no_control_characters() -> None:
    with pytest.raises(ValueError, match="the model card") as error:
        ModelCard.from_json(changed(format="convattn-\x1b[31m", version="\x1b"), "a\nb")
    assert str(error.value).isprintable()
